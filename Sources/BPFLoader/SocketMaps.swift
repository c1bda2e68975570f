import BPFPrograms
import CLibBPF
import DataplaneModel
import Glibc
import Netlink

/// The maps of bpf/sock.c, pinned. Those with the same layout as ours are taken over with what is in them.
final class SocketMaps: Sendable {
  let frontends: BPFMap<FrontendKeyLayout, FrontendLayout>
  let sets: BPFMap<SetKeyLayout, BackendSetLayout>
  let slots: BPFMap<SlotKeyLayout, BackendLayout>
  let members: BPFMap<MemberKeyLayout, UInt32>
  let sources: BPFMap<SourceKeyLayout, UInt32>
  let nodeAddresses: BPFMap<AddressLayout, UInt32>
  let clients: BPFMap<UInt64, ClientLayout>
  let affinities: BPFMap<AffinityKeyLayout, AffinityLayout>
  let connections: BPFMap<UInt64, ConnectionLayout>
  let toldPeers: BPFMap<PeerKeyLayout, BackendLayout>
  let realPeers: BPFMap<PeerKeyLayout, BackendLayout>

  /// Of the object once it is loaded.
  init(_ object: BPFObject) throws(SystemError) {
    func descriptor(_ name: String) throws(SystemError) -> FileDescriptor {
      let lent = try object.descriptor(ofMap: name)
      let own = fcntl(lent, F_DUPFD_CLOEXEC, 0)
      guard own >= 0 else { throw SystemError(operation: "duplicate descriptor of", object: name, errno: errno) }
      return FileDescriptor(owning: own)
    }
    frontends = try BPFMap("frontends", owning: try descriptor("frontends"))
    sets = try BPFMap("sets", owning: try descriptor("sets"))
    slots = try BPFMap("slots", owning: try descriptor("slots"))
    members = try BPFMap("members", owning: try descriptor("members"))
    sources = try BPFMap("sources", owning: try descriptor("sources"))
    nodeAddresses = try BPFMap("node_addresses", owning: try descriptor("node_addresses"))
    clients = try BPFMap("clients", owning: try descriptor("clients"))
    affinities = try BPFMap("affinities", owning: try descriptor("affinities"))
    connections = try BPFMap("connections", owning: try descriptor("connections"))
    toldPeers = try BPFMap("told_peers", owning: try descriptor("told_peers"))
    realPeers = try BPFMap("real_peers", owning: try descriptor("real_peers"))
  }
}

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
  func removeOthers(than object: BPFObject) throws(SystemError) {
    var wanted: Set<String> = []
    for map in object.mapNames { wanted.insert(try Self.pin(map, of: object)) }
    for name in pins.names where name.hasPrefix(Self.prefix) && !wanted.contains(name) { try pins.remove(name) }
  }
}
