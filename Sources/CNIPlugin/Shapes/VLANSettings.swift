import LocalAPI
import Netlink

/// `vlan` and `vlanTrunk` of the bridge shape: of which VLANs a pod's port is.
struct VLANSettings: Hashable {
  /// `vlan`.
  let access: UInt16?
  /// What the pod sends without a tag is of it, and its frames reach the pod without one; nil: nothing is told to the bridge.
  let native: UInt16?
  /// Those that the pod may put tags of on its frames.
  let trunk: [ClosedRange<UInt16>]
  /// The port is of the bridge's own VLAN as well.
  let keepsDefault: Bool

  /// Nobody asks the bridge to keep VLANs apart.
  var isEmpty: Bool { native == nil }

  init(_ fields: ConfigFields) throws(CNIError) {
    let access = try fields.integer("vlan", in: 0...Int(PortVLAN.ids.upperBound)).map { UInt16($0) }
    self.access = access == 0 ? nil : access
    keepsDefault = try fields.bool("preserveDefaultVlan") ?? false
    var tagged: Set<UInt16> = []
    for (index, element) in (try fields.array("vlanTrunk") ?? []).enumerated() {
      let name = "vlanTrunk[\(index)]"
      guard let object = element.objectValue else { throw .config(name, "is no object") }
      tagged.formUnion(try Self.ids(of: object, name))
    }
    // As the reference plugin has it: where pods have tags, those without one are of VLAN 1.
    native = self.access ?? (tagged.isEmpty ? nil : 1)
    if let native { tagged.remove(native) }
    trunk = Self.ranges(tagged)
    // Each is a rule of the pod's chain, and all have to fit one message to the kernel.
    guard trunk.count <= Self.mostRanges else {
      throw .config("vlanTrunk", "\(trunk.count) separate ranges are more than \(Self.mostRanges)")
    }
  }

  private static let mostRanges = 200

  /// `{"id"}`, `{"minID", "maxID"}`, or both.
  private static func ids(of element: JSONObject, _ name: String) throws(CNIError) -> Set<UInt16> {
    let fields = ConfigFields(element, prefix: name + ".")
    let numbers = Int(PortVLAN.ids.lowerBound)...Int(PortVLAN.ids.upperBound)
    var found: Set<UInt16> = []
    if let id = try fields.integer("id", in: numbers) { found.insert(UInt16(id)) }
    switch (try fields.integer("minID", in: numbers), try fields.integer("maxID", in: numbers)) {
    case (nil, nil): break
    case (.some, nil): throw .config(name + ".maxID", "is missing: minID has to go with it")
    case (nil, .some): throw .config(name + ".minID", "is missing: maxID has to go with it")
    case (let first?, let last?):
      guard first <= last else { throw .config(name + ".minID", "\(first) is greater than maxID \(last)") }
      found.formUnion(UInt16(first)...UInt16(last))
    }
    guard !found.isEmpty else { throw .config(name, "has neither id nor minID and maxID") }
    return found
  }

  private init(access: UInt16?, keepsDefault: Bool) {
    (self.access, native, trunk, self.keepsDefault) = (access, access, [], keepsDefault)
  }

  /// Of the port behind which the node has the gateway addresses.
  var ofGateway: VLANSettings { VLANSettings(access: access, keepsDefault: keepsDefault) }

  private static func ranges(_ ids: Set<UInt16>) -> [ClosedRange<UInt16>] {
    var ranges: [ClosedRange<UInt16>] = []
    for id in ids.sorted() {
      if let last = ranges.last, last.upperBound + 1 == id {
        ranges[ranges.count - 1] = last.lowerBound...id
      } else {
        ranges.append(id...id)
      }
    }
    return ranges
  }

  // MARK: The kernel's

  /// What was there before is gone, but for the bridge's own VLAN where that is kept. A port that was of its VLAN before is so all
  /// the time.
  func apply(toPort index: Int, _ node: RouteSocket) throws(NetlinkError) {
    guard let native else { return }
    try node.addVLAN(PortVLAN(native, isDefault: true, isUntagged: true), portIndex: index)
    if !keepsDefault {
      let all = PortVLAN.ids
      if native > all.lowerBound { try node.removeVLANs(all.lowerBound...native - 1, portIndex: index) }
      if native < all.upperBound { try node.removeVLANs(native + 1...all.upperBound, portIndex: index) }
    }
    for ids in trunk { try node.addVLANs(ids, portIndex: index) }
  }

  /// What is wrong with a port of this bridge, nil where nothing is.
  func fault(ofPort index: Int, bridge: Int, _ node: RouteSocket) throws(NetlinkError) -> String? {
    guard let native else { return nil }
    guard let vlans = try node.bridgeVLANs(index: bridge), vlans.isFiltering, vlans.tagType == PortVLAN.tagType else {
      return "is a port of a bridge that does not keep VLANs apart"
    }
    let wanted = Set([PortVLAN(native, isDefault: true, isUntagged: true)] + trunk.joined().map { PortVLAN($0) })
    func fault() throws(NetlinkError) -> String? {
      let present = Set(try node.vlans(portIndex: index))
      if let missing = wanted.subtracting(present).map(\.id).min() {
        return "is not of VLAN \(missing) as it has to be"
      }
      let others = present.subtracting(wanted).map(\.id).filter { !(keepsDefault && $0 == vlans.defaultID) }
      return others.min().map { "is of VLAN \($0), which it is not to be" }
    }
    // The kernel's list may have had a gap.
    return try fault() == nil ? nil : fault()
  }
}
