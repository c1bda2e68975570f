import CLinux
import Glibc
import NetworkTypes

/// The other end of a veth pair, created directly where it will live: moving it there afterwards costs an RCU grace
/// period, 15 ms.
public struct VethPeer: Sendable {
  public var name: String
  public var mac: MACAddress?
  public var mtu: Int?
  /// An open descriptor of the namespace; nil: the same one.
  public var namespaceDescriptor: CInt?

  public init(name: String, mac: MACAddress? = nil, mtu: Int? = nil, namespaceDescriptor: CInt? = nil) {
    self.name = name
    self.mac = mac
    self.mtu = mtu
    self.namespaceDescriptor = namespaceDescriptor
  }
}

/// What to change about a link; nil leaves as it is.
public struct LinkChanges: Sendable, Hashable {
  public var isUp: Bool?
  public var mtu: Int?
  public var mac: MACAddress?
  public var alias: String?
  public var name: String?
  /// An index, or 0 to leave the master.
  public var masterIndex: Int?
  /// Whether it takes in frames that are for others.
  public var isPromiscuous: Bool?

  public init(
    isUp: Bool? = nil, mtu: Int? = nil, mac: MACAddress? = nil, alias: String? = nil, name: String? = nil,
    masterIndex: Int? = nil, isPromiscuous: Bool? = nil
  ) {
    self.isUp = isUp
    self.mtu = mtu
    self.mac = mac
    self.alias = alias
    self.name = name
    self.masterIndex = masterIndex
    self.isPromiscuous = isPromiscuous
  }
}

extension RouteSocket {
  private static let upFlag: UInt32 = 1  // IFF_UP
  private static let promiscuousFlag: UInt32 = 0x100  // IFF_PROMISC

  // MARK: Reading

  public func links() throws(NetlinkError) -> [Link] {
    var message = NetlinkMessageBuilder(type: RTM_GETLINK)
    message.append(ifinfomsg())
    message.attribute(IFLA_EXT_MASK, number: UInt32(RTEXT_FILTER_SKIP_STATS))
    return try list(message, answers: RTM_NEWLINK, "list links", Link.init(message:))
  }

  /// nil where there is none of this name.
  public func link(named name: String) throws(NetlinkError) -> Link? {
    guard Self.isPossibleName(name) else { return nil }
    var message = NetlinkMessageBuilder(type: RTM_GETLINK)
    message.append(ifinfomsg())
    message.attribute(IFLA_IFNAME, string: name)
    message.attribute(IFLA_EXT_MASK, number: UInt32(RTEXT_FILTER_SKIP_STATS))
    return try oneLink(message, name)
  }

  public func link(index: Int) throws(NetlinkError) -> Link? {
    var message = NetlinkMessageBuilder(type: RTM_GETLINK)
    var header = ifinfomsg()
    header.ifi_index = CInt(clamping: index)
    message.append(header)
    message.attribute(IFLA_EXT_MASK, number: UInt32(RTEXT_FILTER_SKIP_STATS))
    return try oneLink(message, "#\(index)")
  }

  private func oneLink(_ message: NetlinkMessageBuilder, _ object: String) throws(NetlinkError) -> Link? {
    let operation = "look up link"
    do throws(NetlinkError) {
      let answer = try socket.request(message, operation: operation, object: object)
      return try Self.decode(answer, RTM_NEWLINK, operation, Link.init(message:)).first
    } catch {
      if error.errno == ENODEV { return nil }
      throw error
    }
  }

  /// The kernel takes 15 bytes; a longer name would be cut or refused with a number that says nothing.
  static func isPossibleName(_ name: String) -> Bool { (1...15).contains(name.utf8.count) }

  // MARK: Creating

  /// Creates a pair, both ends down. EEXIST where either name is taken.
  public func createVethPair(
    name: String, mac: MACAddress? = nil, mtu: Int? = nil, alias: String? = nil, peer: VethPeer
  ) throws(NetlinkError) {
    let object = "\(name) <-> \(peer.name)"
    guard Self.isPossibleName(name), Self.isPossibleName(peer.name) else {
      throw .system(SystemError(operation: "create veth pair", object: object, errno: EINVAL, detail: "name length"))
    }
    try change(Self.vethMessage(name: name, mac: mac, mtu: mtu, alias: alias, peer: peer), "create veth pair", object)
  }

  static func vethMessage(
    name: String, mac: MACAddress?, mtu: Int?, alias: String?, peer: VethPeer
  ) -> NetlinkMessageBuilder {
    var message = NetlinkMessageBuilder(type: RTM_NEWLINK, flags: NLM_F_CREATE | NLM_F_EXCL)
    message.append(ifinfomsg())
    append(to: &message, name: name, mac: mac, mtu: mtu)
    if let alias { message.attribute(IFLA_IFALIAS, Array(alias.utf8)) }
    message.nest(IFLA_LINKINFO) { message in
      message.attribute(IFLA_INFO_KIND, Array("veth".utf8))
      message.nest(IFLA_INFO_DATA) { message in
        message.nest(VETH_INFO_PEER) { message in
          message.append(ifinfomsg())
          append(to: &message, name: peer.name, mac: peer.mac, mtu: peer.mtu)
          if let descriptor = peer.namespaceDescriptor {
            message.attribute(IFLA_NET_NS_FD, number: UInt32(bitPattern: descriptor))
          }
        }
      }
    }
    return message
  }

  private static func append(to message: inout NetlinkMessageBuilder, name: String, mac: MACAddress?, mtu: Int?) {
    message.attribute(IFLA_IFNAME, string: name)
    if let mac { message.attribute(IFLA_ADDRESS, mac.bytes) }
    if let mtu { message.attribute(IFLA_MTU, number: UInt32(clamping: mtu)) }
  }

  public func createBridge(name: String, mac: MACAddress? = nil, mtu: Int? = nil) throws(NetlinkError) {
    try create(kind: "bridge", name: name, mac: mac, mtu: mtu)
  }

  public func createDummy(name: String, mac: MACAddress? = nil, mtu: Int? = nil) throws(NetlinkError) {
    try create(kind: "dummy", name: name, mac: mac, mtu: mtu)
  }

  /// A device that hands what is sent to it on to where that came from; what waits in it is shaped.
  public func createIntermediateBlock(name: String, mtu: Int? = nil) throws(NetlinkError) {
    try create(kind: "ifb", name: name, mac: nil, mtu: mtu)
  }

  private func create(kind: String, name: String, mac: MACAddress?, mtu: Int?) throws(NetlinkError) {
    guard Self.isPossibleName(name) else {
      throw .system(SystemError(operation: "create \(kind)", object: name, errno: EINVAL, detail: "name length"))
    }
    var message = NetlinkMessageBuilder(type: RTM_NEWLINK, flags: NLM_F_CREATE | NLM_F_EXCL)
    message.append(ifinfomsg())
    Self.append(to: &message, name: name, mac: mac, mtu: mtu)
    message.nest(IFLA_LINKINFO) { $0.attribute(IFLA_INFO_KIND, Array(kind.utf8)) }
    try change(message, "create \(kind)", name)
  }

  // MARK: Changing

  public func setLink(index: Int, _ changes: LinkChanges) throws(NetlinkError) {
    var header = ifinfomsg()
    header.ifi_index = CInt(clamping: index)
    if let isUp = changes.isUp {
      header.ifi_flags = isUp ? Self.upFlag : 0
      header.ifi_change = Self.upFlag
    }
    if let isPromiscuous = changes.isPromiscuous {
      if isPromiscuous { header.ifi_flags |= Self.promiscuousFlag }
      header.ifi_change |= Self.promiscuousFlag
    }
    // RTM_NEWLINK without NLM_F_CREATE changes what exists.
    var message = NetlinkMessageBuilder(type: RTM_NEWLINK)
    message.append(header)
    if let mtu = changes.mtu { message.attribute(IFLA_MTU, number: UInt32(clamping: mtu)) }
    if let mac = changes.mac { message.attribute(IFLA_ADDRESS, mac.bytes) }
    if let alias = changes.alias { message.attribute(IFLA_IFALIAS, Array(alias.utf8)) }
    if let name = changes.name { message.attribute(IFLA_IFNAME, string: name) }
    if let master = changes.masterIndex { message.attribute(IFLA_MASTER, number: UInt32(clamping: master)) }
    try change(message, "change link", "#\(index)")
  }

  /// Succeeds also when there is no such link.
  public func deleteLink(index: Int, called name: String? = nil) throws(NetlinkError) {
    try tolerating(ENODEV) { () throws(NetlinkError) in
      try change(Self.deletion(ofLink: index), "delete link", name ?? "#\(index)")
    }
  }

  static func deletion(ofLink index: Int) -> NetlinkMessageBuilder {
    var header = ifinfomsg()
    header.ifi_index = CInt(clamping: index)
    var message = NetlinkMessageBuilder(type: RTM_DELLINK)
    message.append(header)
    return message
  }

  public func deleteLink(named name: String) throws(NetlinkError) {
    guard Self.isPossibleName(name) else { return }
    var message = NetlinkMessageBuilder(type: RTM_DELLINK)
    message.append(ifinfomsg())
    message.attribute(IFLA_IFNAME, string: name)
    try tolerating(ENODEV) { () throws(NetlinkError) in try change(message, "delete link", name) }
  }
}

extension Link {
  init(message: NetlinkMessage) throws(MalformedNetlink) {
    let header = try message.fixed(ifinfomsg.self)
    let attributes = try message.attributes(after: ifinfomsg.self)
    index = Int(header.ifi_index)
    flags = header.ifi_flags
    name = attributes.string(IFLA_IFNAME) ?? ""
    mac = attributes.last(IFLA_ADDRESS).flatMap { MACAddress(bytes: $0.content) }
    mtu = Int(try attributes.number(IFLA_MTU, as: UInt32.self) ?? 0)
    masterIndex = try attributes.number(IFLA_MASTER, as: UInt32.self).map { Int($0) }
    let link = try attributes.number(IFLA_LINK, as: UInt32.self).map { Int($0) }
    peerIndex = link == 0 ? nil : link
    peerNamespaceID = try attributes.number(IFLA_LINK_NETNSID, as: CInt.self).map { Int($0) }
    kind = try attributes.nested(IFLA_LINKINFO)?.string(IFLA_INFO_KIND)
    alias = attributes.string(IFLA_IFALIAS)
  }
}
