import LocalAPI
import Netlink

/// `vlan` and `vlanTrunk` of the bridge shape: of which VLANs a pod's port is.
struct VLANSettings: Hashable {
  /// What the pod sends without a tag is of it, and its frames reach the pod without one; nil: the bridge's own.
  let access: UInt16?
  /// Those that the pod may put tags of on its frames.
  let trunk: [ClosedRange<UInt16>]
  /// The port is of the bridge's own VLAN as well.
  let keepsDefault: Bool

  /// Nobody asks the bridge to keep VLANs apart.
  var isEmpty: Bool { access == nil && trunk.isEmpty }

  init(_ fields: ConfigFields) throws(CNIError) {
    let access = try fields.integer("vlan", in: 0...Int(PortVLAN.ids.upperBound)).map { UInt16($0) }
    self.access = access == 0 ? nil : access
    keepsDefault = try fields.bool("preserveDefaultVlan") ?? true
    var tagged: Set<UInt16> = []
    for (index, element) in (try fields.array("vlanTrunk") ?? []).enumerated() {
      tagged.formUnion(try Self.ids(of: element.objectValue ?? [:], "vlanTrunk[\(index)]"))
    }
    if let own = self.access { tagged.remove(own) }
    trunk = Self.ranges(tagged)
  }

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
    (self.access, self.trunk, self.keepsDefault) = (access, [], keepsDefault)
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

  /// What was there before is gone, but for the bridge's own VLAN where that is kept.
  func apply(toPort index: Int, _ node: RouteSocket) throws(NetlinkError) {
    guard !isEmpty else { return }
    if !keepsDefault { try node.removeVLANs(PortVLAN.ids, portIndex: index) }
    if let access { try node.addVLAN(PortVLAN(access, isDefault: true, isUntagged: true), portIndex: index) }
    for ids in trunk { try node.addVLANs(ids, portIndex: index) }
  }

  /// What is wrong with a port, nil where nothing is.
  func fault(ofPort index: Int, _ node: RouteSocket) throws(NetlinkError) -> String? {
    guard !isEmpty else { return nil }
    let present = Set(try node.vlans(portIndex: index))
    let untagged = access.map { [PortVLAN($0, isDefault: true, isUntagged: true)] } ?? []
    let wanted = Set(untagged + trunk.joined().map { PortVLAN($0) })
    if let missing = wanted.subtracting(present).map(\.id).min() { return "is not of VLAN \(missing) as it has to be" }
    guard !keepsDefault, let other = present.subtracting(wanted).map(\.id).min() else { return nil }
    return "is of VLAN \(other), which it is not to be"
  }
}
