import DataplaneModel
import Netlink
import NetworkTypes

/// The same look-ups as `decide` in bpf/include/policy.h, in the kernel's own maps and by its own search.
extension PacketEngine {
  public func judgeInKernel(
    _ packet: PolicyPacket, tables: Tables
  ) throws(SystemError) -> (egress: KernelDecision?, ingress: KernelDecision?) {
    var (egress, ingress): (KernelDecision?, KernelDecision?)
    let isToItself = packet.source == packet.destination
    func exempt() -> KernelDecision { KernelDecision(.exempt, isAllowed: true) }
    if packet.origin == .pod, tables.node.isLocalPod(packet.source) {
      egress = isToItself ? exempt() : try decide(.egress, packet.source, peer: packet.destination, packet)
    }
    if packet.origin != .host, tables.node.isLocalPod(packet.destination) {
      ingress = isToItself ? exempt() : try decide(.ingress, packet.destination, peer: packet.source, packet)
    }
    return (egress, ingress)
  }

  private func decide(
    _ direction: PolicyDirection, _ pod: IPAddress, peer: IPAddress, _ packet: PolicyPacket
  ) throws(SystemError) -> KernelDecision {
    func drop(_ reason: DropReason) -> KernelDecision { KernelDecision(.dropped(reason), isAllowed: false) }
    guard let device = try maps.podDevices[AddressLayout(pod)], let endpoint = try maps.endpoints[device.device],
      endpoint.flags & EndpointLayout.isKnown != 0
    else { return drop(.unknownEndpoint) }
    let subject = direction == .egress ? endpoint.egress : endpoint.ingress
    if subject == SubjectID.unrestricted.rawValue { return KernelDecision(.unrestricted, isAllowed: true) }
    guard let identity = try identity(of: peer) else { return drop(.noVerdict) }
    var key = PairKeyLayout()
    (key.subject, key.identity) = (subject, identity)
    var pair = try maps.pairs[key]
    if pair == nil {
      key.identity = IdentityID.any.rawValue
      pair = try maps.pairs[key]
    }
    guard let pair else { return drop(.noVerdict) }
    let ports = PortKeyLayout(
      PortSetID(rawValue: pair.portSet), PortKey(proto: packet.proto, port: packet.destinationPort))
    var number = try maps.ports[ports]
    if number == nil { number = try maps.portRanges[ports] }
    guard let number, let clause = Clause(rawValue: number) else { return drop(.noVerdict) }
    let clauseKey = ClauseKey(AttributionID(rawValue: pair.attribution), clause)
    guard try maps.clauses[ClauseKeyLayout(clauseKey)] != nil else { return drop(.noVerdict) }
    return KernelDecision(
      .decided(
        clauseKey, PairKey(SubjectID(rawValue: key.subject), IdentityID(rawValue: key.identity))),
      isAllowed: clause.isAllowed)
  }

  private func identity(of peer: IPAddress) throws(SystemError) -> UInt32? {
    if let identity = try maps.identities[AddressLayout(peer)] { return identity }
    guard let table = try maps.tracking.state[PacketTable.State.blocks(peer.family)] else { return nil }
    return try maps.blocks[RangeKeyLayout(table: table, CIDR(host: peer))]
  }
}
