import Glibc
import Netlink

/// Takes over pinned maps before an object is loaded, and pins new ones after it.
struct MapPins {
  let pins: PinFolder

  static let prefix = "map-"

  /// Type, sizes and flags stand in the name.
  static func pin(_ map: String, of object: BPFObject) throws(SystemError) -> String {
    let shape = try object.shape(of: map)
    return "\(prefix)\(map)-\(shape.type)-\(shape.keySize)-\(shape.valueSize)-\(shape.maximum)-\(shape.flags)"
  }

  /// - Throws: where somebody pinned another kind of map by our name.
  func adopt(into object: BPFObject) throws(SystemError) {
    for map in object.mapNames {
      let pin = try Self.pin(map, of: object)
      guard let descriptor = try pins.open(pin) else { continue }
      defer { close(descriptor) }
      let info = try MapInfo(descriptor, map)
      guard info == (try object.shape(of: map)) else {
        throw SystemError(
          operation: "adopt", object: pins.path(pin), errno: EINVAL, detail: "it is no map of ours: \(info)")
      }
      try object.reuse(map, descriptor)
    }
  }

  func pin(_ object: BPFObject) throws(SystemError) {
    for map in object.mapNames {
      let pin = try Self.pin(map, of: object)
      if let descriptor = try pins.open(pin) {
        close(descriptor)
      } else {
        try pins.pin(try object.descriptor(ofMap: map), pin)
      }
    }
  }

  /// Pins of maps of other layouts: an older build's, which nobody uses once its programs are replaced.
  func removeOthers(than objects: [BPFObject]) throws(SystemError) {
    var wanted: Set<String> = []
    for object in objects { for map in object.mapNames { wanted.insert(try Self.pin(map, of: object)) } }
    for name in pins.names where name.hasPrefix(Self.prefix) && !wanted.contains(name) { try pins.remove(name) }
  }
}
