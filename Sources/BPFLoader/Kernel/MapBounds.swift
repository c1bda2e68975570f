import Glibc
import Netlink

/// How many elements maps may have, by name, where it is not what the programs' files say.
public struct MapBounds: Sendable, Hashable {
  public private(set) var bounds: [String: Int]

  /// A hash map costs 16 bytes for each element that it may have, a cache all of its elements.
  public static let largest = 1 << 24

  public init(_ bounds: [String: Int] = [:]) { self.bounds = bounds }

  /// With twice the room for a map that has `maximum`; nil where it has all that it may have.
  public func growing(_ map: String, beyond maximum: Int) -> MapBounds? {
    guard maximum < Self.largest else { return nil }
    var grown = self
    grown.bounds[map] = min(maximum * 2, Self.largest)
    return grown
  }

  /// - Throws: by the first name that no map of these objects has, or whose map has no elements that come and go.
  static func check(_ bounds: MapBounds, against objects: [BPFObject]) throws(SystemError) {
    for map in bounds.bounds.keys.sorted() {
      guard let object = objects.first(where: { $0.mapNames.contains(map) }) else {
        let known = Set(objects.flatMap(\.mapNames)).sorted().joined(separator: ", ")
        throw SystemError(operation: "set the bound of", object: map, errno: ENOENT, detail: "maps are \(known)")
      }
      guard PinnedMap.Kind(try object.shape(of: map).type).canFill else {
        throw SystemError(operation: "set the bound of", object: map, errno: EINVAL, detail: "it has a size of its own")
      }
    }
  }

  func apply(to object: BPFObject) throws(SystemError) {
    for (map, maximum) in bounds where object.mapNames.contains(map) { try object.setMaximum(map, maximum) }
  }
}
