import CLinux
import Glibc
import NetworkTypes

extension RouteSocket {
  /// The neighbours of both families, of one interface or all. Entries that need no look-up (`NUD_NOARP`) are left out.
  public func neighbours(interfaceIndex: Int? = nil) throws(NetlinkError) -> [Neighbour] {
    var neighbours: [Neighbour] = []
    for family in IPFamily.allCases {
      var header = ndmsg()
      header.ndm_family = family.linuxFamily
      var message = NetlinkMessageBuilder(type: RTM_GETNEIGH)
      message.append(header)
      if let interfaceIndex { message.attribute(NDA_IFINDEX, number: UInt32(clamping: interfaceIndex)) }
      neighbours += try list(message, answers: RTM_NEWNEIGH, "list neighbours", Neighbour.init(message:))
    }
    return neighbours.filter { interfaceIndex == nil || $0.interfaceIndex == interfaceIndex }
  }

  /// Sets an entry, whatever there was for the address.
  public func replaceNeighbour(_ neighbour: Neighbour) throws(NetlinkError) {
    var message = NetlinkMessageBuilder(type: RTM_NEWNEIGH, flags: NLM_F_CREATE | NLM_F_REPLACE)
    append(to: &message, neighbour)
    if let mac = neighbour.mac { message.attribute(NDA_LLADDR, mac.bytes) }
    try change(message, "set neighbour", "\(neighbour.address) dev #\(neighbour.interfaceIndex)")
  }

  /// Succeeds also when there is no such entry.
  public func deleteNeighbour(_ address: IPAddress, interfaceIndex: Int) throws(NetlinkError) {
    var message = NetlinkMessageBuilder(type: RTM_DELNEIGH)
    append(to: &message, Neighbour(address: address, interfaceIndex: interfaceIndex, mac: nil, state: 0))
    try tolerating(ENOENT, ENODEV) { () throws(NetlinkError) in
      try change(message, "delete neighbour", "\(address) dev #\(interfaceIndex)")
    }
  }

  private func append(to message: inout NetlinkMessageBuilder, _ neighbour: Neighbour) {
    var header = ndmsg()
    header.ndm_family = neighbour.address.family.linuxFamily
    header.ndm_ifindex = CInt(clamping: neighbour.interfaceIndex)
    header.ndm_state = neighbour.state
    message.append(header)
    message.attribute(NDA_DST, address: neighbour.address)
  }
}

extension Neighbour {
  init?(message: NetlinkMessage) throws(MalformedNetlink) {
    let header = try message.fixed(ndmsg.self)
    let attributes = try message.attributes(after: ndmsg.self)
    guard header.ndm_state & UInt16(NUD_NOARP) == 0,
      let address = attributes.last(NDA_DST).flatMap({ IPAddress(bytes: $0.content) })
    else { return nil }
    self.init(
      address: address, interfaceIndex: Int(header.ndm_ifindex),
      mac: attributes.last(NDA_LLADDR).flatMap { MACAddress(bytes: $0.content) }, state: header.ndm_state)
  }
}
