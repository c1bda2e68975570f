import CLibMNL
import CLibNFTNL
import DataplaneModel
import NetworkTypes

extension NFTablesEngine {
  /// Asks the kernel's maps, element by element and in the rules' order, what happens to a flow's first packet: the same
  /// elements that a packet would find, by the kernel's own search. Nothing of our tables is used but the device of each
  /// side, which a packet brings and an address does not.
  ///
  /// A direction is nil where no local pod is on that side, or where a rule decides before any look-up (this node's own
  /// packets to a pod).
  public func judgeInKernel(
    _ packet: PolicyPacket, tables: Tables
  ) throws(NFTablesError) -> (egress: KernelDecision?, ingress: KernelDecision?) {
    var (egress, ingress): (KernelDecision?, KernelDecision?)
    let isToItself = try isToItself(packet)
    func exempt() -> KernelDecision { KernelDecision(.exempt, isAllowed: true) }
    if packet.origin == .pod, let sender = tables.node.endpoint(with: packet.source) {
      egress = isToItself ? exempt() : try decide(.egress, sender.interface, peer: packet.destination, packet)
    }
    if packet.origin != .host, let receiver = tables.node.endpoint(with: packet.destination) {
      ingress = isToItself ? exempt() : try decide(.ingress, receiver.interface, peer: packet.source, packet)
    }
    return (egress, ingress)
  }

  private func isToItself(_ packet: PolicyPacket) throws(NFTablesError) -> Bool {
    guard packet.source.family == packet.destination.family else { return false }
    var key = ElementBytes()
    key.append(packet.source)
    key.append(packet.destination)
    return try connection.element(packet.source.family, .hairpin, key: key.bytes) != nil
  }

  private func decide(
    _ direction: PolicyDirection, _ device: String, peer: IPAddress, _ packet: PolicyPacket
  ) throws(NFTablesError) -> KernelDecision {
    let family = peer.family
    var key = ElementBytes()
    key.append(interface: device)
    let subjects: MapName = direction == .egress ? .egressSubjects : .ingressSubjects
    guard let subject = try connection.value(family, subjects, key) else {
      return KernelDecision(.dropped(.unknownEndpoint), isAllowed: false)
    }
    if subject == SubjectID.unrestricted.rawValue { return KernelDecision(.unrestricted, isAllowed: true) }
    let failed = KernelDecision(.dropped(.noVerdict), isAllowed: false)
    guard let identity = try identity(of: peer) else { return failed }
    for identity in [identity, IdentityID.any.rawValue] {
      for ports in [MapName.ports, .portRanges] {
        if let found = try clause(subject, identity, ports, packet, family) { return found }
      }
    }
    return failed
  }

  private func identity(of peer: IPAddress) throws(NFTablesError) -> UInt32? {
    let family = peer.family
    var key = ElementBytes()
    key.append(peer)
    if let identity = try connection.value(family, .identities, key) { return identity }
    key.clear()
    key.append(UInt32(0))
    guard let table = try connection.value(family, .blockTable, key) else { return nil }
    key.clear()
    key.append(table)
    key.append(peer)
    return try connection.value(family, .blocks, key)
  }

  private func clause(
    _ subject: UInt32, _ identity: UInt32, _ ports: MapName, _ packet: PolicyPacket, _ family: IPFamily
  ) throws(NFTablesError) -> KernelDecision? {
    let pair = PairKey(SubjectID(rawValue: subject), IdentityID(rawValue: identity))
    var key = ElementBytes()
    key.append(subject)
    key.append(identity)
    guard let element = try connection.element(family, .pairs, key: key.bytes),
      case .pair(_, _, let value) = MapEntry(family: family, map: .pairs, element)
    else { return nil }
    key.clear()
    key.append(value.portSet.rawValue)
    key.append(PortKey(proto: packet.proto, port: packet.destinationPort))
    guard let number = try connection.value(family, ports, key), let clause = Clause(rawValue: number) else {
      return nil
    }
    let decision = PolicyDecision.decided(ClauseKey(value.attribution, clause), pair)
    key.clear()
    key.append(value.attribution.rawValue)
    key.append(number)
    switch try connection.element(family, .verdicts, key: key.bytes)?.verdict {
    case nil: return nil
    case .return: return KernelDecision(decision, isAllowed: true)
    case .continue: break
    default: return KernelDecision(decision, isAllowed: false)
    }
    // What is told of: its label says what becomes of it.
    guard let label = try connection.value(family, .clauseLabels, key) else { return nil }
    key.clear()
    key.append(label & ClauseLabel.passes)
    guard let outcome = try connection.element(family, .outcomes, key: key.bytes)?.verdict else { return nil }
    return KernelDecision(decision, isAllowed: outcome == .return)
  }
}

extension Connection {
  /// The element that a packet's look-up of this key would find; nil: none, or no such map. Of an interval map it is the
  /// one that the key lies in.
  func element(_ family: IPFamily, _ map: MapName, key: [UInt8]) throws(NFTablesError) -> KernelElement? {
    var found: KernelElement?
    try request(
      Int(NFT_MSG_GETSETELEM.rawValue), family: family.nfproto, dump: false, object: "element of \(map.rawValue)",
      writing: { header in
        mnl_attr_put_strz(header, UInt16(NFTA_SET_ELEM_LIST_TABLE.rawValue), Layout.tableName)
        mnl_attr_put_strz(header, UInt16(NFTA_SET_ELEM_LIST_SET.rawValue), map.rawValue)
        let nests = [NFTA_SET_ELEM_LIST_ELEMENTS.rawValue, NFTA_LIST_ELEM.rawValue, NFTA_SET_ELEM_KEY.rawValue]
          .compactMap { mnl_attr_nest_start(header, UInt16($0)) }
        mnl_attr_put(header, UInt16(NFTA_DATA_VALUE.rawValue), key.count, key)
        for nest in nests.reversed() { mnl_attr_nest_end(header, nest) }
      },
      body: { message in message.forEachElement { found = $0 } })
    return found
  }

  /// The number that a map has for a key.
  fileprivate func value(_ family: IPFamily, _ map: MapName, _ key: ElementBytes) throws(NFTablesError) -> UInt32? {
    guard let data = try element(family, map, key: key.bytes)?.data, data.count == 4 else { return nil }
    return data.withUnsafeBytes { $0.loadUnaligned(as: UInt32.self) }
  }
}

extension KernelMessage {
  /// The elements of an `NFT_MSG_NEWSETELEM`.
  func forEachElement(_ body: (KernelElement) -> Void) {
    forEachAttribute(skipping: 4) { type, list in
      guard type == NFTA_SET_ELEM_LIST_ELEMENTS.rawValue else { return }
      attributes(in: list) { _, element in body(KernelElement(element)) }
    }
  }
}
