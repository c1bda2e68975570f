import CLinux
import Glibc
import NetworkTypes

/// A datagram socket that is connected.
public struct ConnectedSocket: Sendable, Hashable {
  public var family: IPFamily
  public var peer: SocketAddress
  /// The kernel's number of the socket, for good.
  public var cookie: UInt64
  /// `struct inet_diag_sockid`, as the kernel wrote it: it names the socket.
  var id: [UInt8]
}

/// sock_diag(7) of one network namespace: its datagram sockets.
public final class SocketDiagnosis: Sendable {
  private let socket: NetlinkSocket

  private enum Message {
    static let byFamily = 20  // SOCK_DIAG_BY_FAMILY
    static let destroy = 21  // SOCK_DESTROY
  }

  /// Of `namespace`, or of the caller's own.
  public init(in namespace: NetworkNamespace? = nil) throws(SystemError) {
    socket = try NetlinkSocket(protocol: 4, in: namespace)  // NETLINK_SOCK_DIAG
  }

  /// Every UDP socket that has a peer. The peer of an IPv6 socket that talks IPv4 is an IPv4 address.
  public func connectedDatagramSockets(_ family: IPFamily) throws(NetlinkError) -> [ConnectedSocket] {
    try socket.dump(Self.message(Message.byFamily, family), operation: "list UDP sockets", object: "\(family)")
      .compactMap { ConnectedSocket($0.payload) }
  }

  /// Ends it as an error of the network would: its owner's next call fails with ECONNABORTED. Needs CAP_NET_ADMIN and
  /// CONFIG_INET_DIAG_DESTROY.
  ///
  /// - Returns: false where it is gone already.
  public func destroy(_ target: ConnectedSocket) throws(NetlinkError) -> Bool {
    do throws(NetlinkError) {
      try socket.acknowledge(
        Self.message(Message.destroy, target.family, id: target.id), operation: "end UDP socket to",
        object: "\(target.peer)")
      return true
    } catch {
      if error.errno == ENOENT { return false }
      throw error
    }
  }

  /// `struct inet_diag_req_v2`.
  private static func message(_ type: Int, _ family: IPFamily, id: [UInt8]? = nil) -> NetlinkMessageBuilder {
    var message = NetlinkMessageBuilder(type: type)
    message.append(UInt32(family.linuxFamily) | UInt32(IPPROTO_UDP) << 8)
    // Sockets of every state: UDP has two.
    message.append(UInt32.max)
    for byte in stride(from: 0, to: ConnectedSocket.idSize, by: 4) {
      message.append(id.map { $0[byte..<byte + 4].withUnsafeBytes { $0.loadUnaligned(as: UInt32.self) } } ?? 0)
    }
    return message
  }
}

extension ConnectedSocket {
  static let idSize = 48

  /// From `struct inet_diag_msg`; nil for a socket without peer.
  init?(_ message: some Collection<UInt8>) {
    // Family, state, timer and retransmissions come first.
    let message = Array(message)
    guard message.count >= 4 + Self.idSize else { return nil }
    let id = Array(message[4..<4 + Self.idSize])
    let port = UInt16(id[2]) << 8 | UInt16(id[3])
    let destination = Array(id[20..<36])
    let isV6 = Int32(message[0]) == AF_INET6
    let isMapped = isV6 && destination.prefix(12) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
    let bytes = !isV6 ? Array(destination.prefix(4)) : isMapped ? Array(destination.suffix(4)) : destination
    guard let port = Port(port), let address = IPAddress(bytes: bytes) else { return nil }
    family = isV6 ? .v6 : .v4
    peer = SocketAddress(address, port)
    cookie = id[40..<48].withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) }
    self.id = id
  }
}
