import CLibBPF
import Netlink

/// The maps of bpf/endpoint.c and bpf/uplink.c.
final class PacketMaps: Sendable {
  let endpoints: BPFMap<UInt32, EndpointLayout>
  let podDevices: BPFMap<AddressLayout, UInt32>
  let addresses: BPFMap<AddressLayout, UInt32>
  let ranges: BPFMap<RangeKeyLayout, UInt32>
  let uplinks: BPFMap<UInt32, UplinkLayout>
  let internalAddresses: BPFMap<UInt32, AddressLayout>
  let state: BPFMap<UInt32, UInt32>
  let identities: BPFMap<AddressLayout, UInt32>
  let blocks: BPFMap<RangeKeyLayout, UInt32>
  let pairs: BPFMap<PairKeyLayout, PairLayout>
  let ports: BPFMap<PortKeyLayout, UInt32>
  let portRanges: BPFMap<PortKeyLayout, UInt32>
  let clauses: PerProcessorMap<ClauseKeyLayout>
  let drops: PerProcessorMap<UInt32>
  let lostEvents: PerProcessorMap<UInt32>
  let flows: BPFMap<TupleLayout, FlowLayout>
  let attempts: BPFMap<TupleLayout, FlowLayout>
  let translations: BPFMap<TupleLayout, TranslationLayout>
  let affinities: BPFMap<AffinityKeyLayout, AffinityLayout>
  let frontends: BPFMap<FrontendKeyLayout, FrontendLayout>
  let sets: BPFMap<SetKeyLayout, BackendSetLayout>
  let slots: BPFMap<SlotKeyLayout, BackendLayout>

  /// Of an object once it is loaded.
  init(_ object: BPFObject) throws(SystemError) {
    endpoints = try object.openMap("endpoints")
    podDevices = try object.openMap("pod_devices")
    addresses = try object.openMap("addresses")
    ranges = try object.openMap("ranges")
    uplinks = try object.openMap("uplinks")
    internalAddresses = try object.openMap("internal_addresses")
    state = try object.openMap("state")
    identities = try object.openMap("identities")
    blocks = try object.openMap("blocks")
    pairs = try object.openMap("pairs")
    ports = try object.openMap("ports")
    portRanges = try object.openMap("port_ranges")
    clauses = try PerProcessorMap("clauses", owning: try object.duplicateDescriptor(ofMap: "clauses"))
    drops = try PerProcessorMap("drops", owning: try object.duplicateDescriptor(ofMap: "drops"))
    lostEvents = try PerProcessorMap("lost_events", owning: try object.duplicateDescriptor(ofMap: "lost_events"))
    flows = try object.openMap("flows")
    attempts = try object.openMap("attempts")
    translations = try object.openMap("translations")
    affinities = try object.openMap("affinities")
    frontends = try object.openMap("frontends")
    sets = try object.openMap("sets")
    slots = try object.openMap("slots")
  }
}
