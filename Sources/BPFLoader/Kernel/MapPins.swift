import CLibBPF
import Glibc
import Netlink

/// Takes over pinned maps before an object is loaded, and pins new ones after it.
struct MapPins {
  let pins: PinFolder

  static let prefix = "map-"

  /// Type, sizes and flags stand in the name.
  static func pin(_ map: String, of object: BPFObject) throws(SystemError) -> String {
    let shape = try object.shape(of: map)
    return "\(layout(map, shape))\(shape.maximum)-\(shape.flags)"
  }

  /// What pins of one layout begin with, whatever the bound.
  private static func layout(_ map: String, _ shape: MapInfo) -> String {
    "\(prefix)\(map)-\(shape.type)-\(shape.keySize)-\(shape.valueSize)-"
  }

  /// - Returns: the maps that there were.
  /// - Throws: where somebody pinned another kind of map by our name.
  @discardableResult
  func adopt(into object: BPFObject) throws(SystemError) -> Set<String> {
    var adopted: Set<String> = []
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
      adopted.insert(map)
    }
    return adopted
  }

  /// Opens the map of that name and layout, whatever its bound; nil where there is none.
  func open(_ map: String, of object: BPFObject) throws(SystemError) -> CInt? {
    let shape = try object.shape(of: map)
    let layout = Self.layout(map, shape)
    for name in pins.names where name.hasPrefix(layout) { if let found = try pins.open(name) { return found } }
    return nil
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

  /// Sets bounds before a load: those asked for; else what a map has grown to stays.
  func setBounds(_ asked: MapBounds, of object: BPFObject) throws(SystemError) {
    try asked.apply(to: object)
    for map in object.mapNames where asked.bounds[map] == nil {
      let shape = try object.shape(of: map)
      guard PinnedMap.Kind(shape.type).canFill else { continue }
      let layout = Self.layout(map, shape)
      let bounds = pins.names.filter { $0.hasPrefix(layout) }.compactMap { name in
        name.dropFirst(layout.count).split(separator: "-").first.flatMap { Int($0) }
      }
      if let grown = bounds.max(), grown > shape.maximum { try object.setMaximum(map, grown) }
    }
  }

  /// What programs remember and no table says. `state` before what it is the revision of.
  private static let remembered = [
    "state", "flows", "attempts", "translations", "fragments", "affinities", "connections", "told_peers", "real_peers",
  ]

  /// Copies what the programs of another generation remember into maps of this one: of other bounds, or of a build whose
  /// values have more at their end. What is there already stays.
  ///
  /// Call it once the maps are loaded, and again once programs have been replaced: until then the old ones write.
  /// - Parameter skipping: maps that are not new.
  func carryOver(into object: BPFObject, skipping known: Set<String> = []) throws(SystemError) {
    for map in Self.remembered where object.mapNames.contains(map) && !known.contains(map) {
      let own = try Self.pin(map, of: object)
      for name in pins.names where name.hasPrefix("\(Self.prefix)\(map)-") && name != own {
        // Another key is another meaning.
        guard let old = try PinnedMap(name, in: pins), old.keySize == (try object.shape(of: map).keySize) else {
          continue
        }
        try copy(old, into: map, of: object)
      }
    }
  }

  private func copy(_ old: PinnedMap, into map: String, of object: BPFObject) throws(SystemError) {
    let descriptor = try object.descriptor(ofMap: map)
    let shape = try object.shape(of: map)
    var value = [UInt8](repeating: 0, count: shape.valueSize)
    // Of an array all elements are there.
    let flags = UInt64(old.kind == .array ? BPF_ANY : BPF_NOEXIST)
    try old.forEach { key, bytes in
      let known = min(bytes.count, value.count)
      value.replaceSubrange(0..<known, with: bytes.prefix(known))
      // One that is there is newer, one without room is forgotten as in any cache.
      _ = bpf_map_update_elem(descriptor, key.baseAddress, &value, flags)
      return true
    }
  }

  /// Pins of maps of other layouts: an older build's, which nobody uses once its programs are replaced.
  func removeOthers(than objects: [BPFObject]) throws(SystemError) {
    var wanted: Set<String> = []
    for object in objects { for map in object.mapNames { wanted.insert(try Self.pin(map, of: object)) } }
    for name in pins.names where name.hasPrefix(Self.prefix) && !wanted.contains(name) { try pins.remove(name) }
  }
}
