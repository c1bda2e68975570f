import CLinux
import Glibc
import NetworkTypes

extension RouteSocket {
  /// The addresses of one family or both, of one interface or all.
  public func addresses(
    family: IPFamily? = nil, interfaceIndex: Int? = nil
  ) throws(NetlinkError) -> [AssignedAddress] {
    var header = ifaddrmsg()
    header.ifa_family = family?.linuxFamily ?? 0
    header.ifa_index = UInt32(clamping: interfaceIndex ?? 0)
    var message = NetlinkMessageBuilder(type: RTM_GETADDR)
    message.append(header)
    do throws(NetlinkError) {
      return try list(message, answers: RTM_NEWADDR, "list addresses", AssignedAddress.init(message:))
        .filter { interfaceIndex == nil || $0.interfaceIndex == interfaceIndex }
    } catch {
      // Strict checking turns a filter for a link that is gone into an error.
      if error.errno == ENODEV { return [] }
      throw error
    }
  }

  /// Adds an address; EEXIST where the interface has it.
  ///
  /// `withoutDAD` makes an IPv6 address usable at once. `withoutPrefixRoute` keeps the kernel from adding a route to the
  /// prefix.
  public func addAddress(
    _ address: InterfaceAddress, interfaceIndex: Int, withoutDAD: Bool = false, withoutPrefixRoute: Bool = false,
    scope: UInt8 = 0
  ) throws(NetlinkError) {
    var flags: UInt32 = 0
    if withoutDAD, address.address.family == .v6 { flags |= UInt32(IFA_F_NODAD) }
    if withoutPrefixRoute { flags |= UInt32(IFA_F_NOPREFIXROUTE) }
    var message = NetlinkMessageBuilder(type: RTM_NEWADDR, flags: NLM_F_CREATE | NLM_F_EXCL)
    append(to: &message, address, interfaceIndex: interfaceIndex, scope: scope)
    if flags != 0 { message.attribute(IFA_FLAGS, number: flags) }
    try change(message, "add address", "\(address) dev #\(interfaceIndex)")
  }

  /// Succeeds also when the interface does not have it, or is gone.
  public func deleteAddress(_ address: InterfaceAddress, interfaceIndex: Int) throws(NetlinkError) {
    var message = NetlinkMessageBuilder(type: RTM_DELADDR)
    append(to: &message, address, interfaceIndex: interfaceIndex, scope: 0)
    try tolerating(EADDRNOTAVAIL, ENODEV) { () throws(NetlinkError) in
      try change(message, "delete address", "\(address) dev #\(interfaceIndex)")
    }
  }

  private func append(
    to message: inout NetlinkMessageBuilder, _ address: InterfaceAddress, interfaceIndex: Int, scope: UInt8
  ) {
    var header = ifaddrmsg()
    header.ifa_family = address.address.family.linuxFamily
    header.ifa_prefixlen = UInt8(clamping: address.prefixLength)
    header.ifa_scope = scope
    header.ifa_index = UInt32(clamping: interfaceIndex)
    message.append(header)
    message.attribute(IFA_LOCAL, address: address.address)
    message.attribute(IFA_ADDRESS, address: address.address)
  }
}

extension AssignedAddress {
  /// nil for families and forms that are not ours (IPv4-mapped).
  init?(message: NetlinkMessage) throws(MalformedNetlink) {
    let header = try message.fixed(ifaddrmsg.self)
    let attributes = try message.attributes(after: ifaddrmsg.self)
    // IFA_ADDRESS is the other end on point-to-point links; IFA_LOCAL is the interface's own, and missing for IPv6.
    guard let content = (attributes.last(IFA_LOCAL) ?? attributes.last(IFA_ADDRESS))?.content,
      let ip = IPAddress(bytes: content),
      let address = InterfaceAddress(ip, prefixLength: Int(header.ifa_prefixlen))
    else { return nil }
    self.address = address
    interfaceIndex = Int(header.ifa_index)
    scope = header.ifa_scope
    flags = try attributes.number(IFA_FLAGS, as: UInt32.self) ?? UInt32(header.ifa_flags)
  }
}
