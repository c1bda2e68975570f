import CLibBPF
import Netlink

/// The maps of bpf/endpoint.c and bpf/uplink.c.
final class PacketMaps: Sendable {
  let endpoints: BPFMap<UInt32, EndpointLayout>
  let podDevices: BPFMap<AddressLayout, PodDeviceLayout>
  let addresses: BPFMap<AddressLayout, UInt32>
  let ranges: BPFMap<RangeKeyLayout, UInt32>
  let uplinks: BPFMap<UInt32, UplinkLayout>
  let internalAddresses: BPFMap<UInt32, AddressLayout>
  let identities: BPFMap<AddressLayout, UInt32>
  let blocks: BPFMap<RangeKeyLayout, UInt32>
  let pairs: BPFMap<PairKeyLayout, PairLayout>
  let ports: BPFMap<PortKeyLayout, UInt32>
  let portRanges: BPFMap<PortKeyLayout, UInt32>
  let clauses: PerProcessorMap<ClauseKeyLayout>
  let drops: PerProcessorMap<UInt32>
  let tracking: TrackingMaps
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
    identities = try object.openMap("identities")
    blocks = try object.openMap("blocks")
    pairs = try object.openMap("pairs")
    ports = try object.openMap("ports")
    portRanges = try object.openMap("port_ranges")
    clauses = try PerProcessorMap("clauses", owning: try object.duplicateDescriptor(ofMap: "clauses"))
    drops = try PerProcessorMap("drops", owning: try object.duplicateDescriptor(ofMap: "drops"))
    tracking = try TrackingMaps(object)
    frontends = try object.openMap("frontends")
    sets = try object.openMap("sets")
    slots = try object.openMap("slots")
  }
}

/// What programs remember, and whether they work: what another engine's agent has to do with.
final class TrackingMaps: Sendable {
  let state: BPFMap<UInt32, UInt32>
  let flows: BPFMap<TupleLayout, FlowLayout>
  let attempts: BPFMap<TupleLayout, FlowLayout>
  let translations: BPFMap<TupleLayout, TranslationLayout>

  /// Of an object once it is loaded.
  init(_ object: BPFObject) throws(SystemError) {
    state = try object.openMap("state")
    flows = try object.openMap("flows")
    attempts = try object.openMap("attempts")
    translations = try object.openMap("translations")
  }

  /// Of the programs that are in the kernel. nil where there are none of this build's layouts.
  init?(_ pins: PinFolder) throws(SystemError) {
    let object = try BPFObject(.endpoint)
    func open<Key: MapLayout, Value: MapLayout>(_ map: String) throws(SystemError) -> BPFMap<Key, Value>? {
      guard let descriptor = try MapPins(pins: pins).open(map, of: object) else { return nil }
      return try BPFMap(map, owning: FileDescriptor(owning: descriptor))
    }
    guard let state: BPFMap<UInt32, UInt32> = try open("state"),
      let flows: BPFMap<TupleLayout, FlowLayout> = try open("flows"),
      let attempts: BPFMap<TupleLayout, FlowLayout> = try open("attempts"),
      let translations: BPFMap<TupleLayout, TranslationLayout> = try open("translations")
    else { return nil }
    self.state = state
    self.flows = flows
    self.attempts = attempts
    self.translations = translations
  }
}
