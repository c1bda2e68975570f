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
    frontends = try object.openMap("frontends")
    sets = try object.openMap("sets")
    slots = try object.openMap("slots")
    members = try object.openMap("members")
    sources = try object.openMap("sources")
    nodeAddresses = try object.openMap("node_addresses")
    clients = try object.openMap("clients")
    affinities = try object.openMap("affinities")
    connections = try object.openMap("connections")
    toldPeers = try object.openMap("told_peers")
    realPeers = try object.openMap("real_peers")
  }
}
