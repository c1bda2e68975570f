import CLinux
import NetworkTypes

/// rtnetlink: the links, addresses, routes, rules and neighbours of one network namespace.
public final class RouteSocket: Sendable {
  let socket: NetlinkSocket

  /// For `namespace`, or the calling thread's own.
  public init(in namespace: NetworkNamespace? = nil) throws(SystemError) {
    socket = try NetlinkSocket(protocol: NETLINK_ROUTE, in: namespace)
  }

  /// The number of the namespace it belongs to: see `NetworkNamespace.cookie`.
  public func namespaceCookie() throws(SystemError) -> UInt64 {
    try SystemCalls.namespaceCookie(of: socket.descriptorNumber)
  }

  /// Sends what changes something and waits for the ack.
  func change(_ message: NetlinkMessageBuilder, _ operation: String, _ object: String) throws(NetlinkError) {
    try socket.acknowledge(message, operation: operation, object: object)
  }

  /// Reads a table whole. Messages of other types and those `decode` has no use for are left out.
  func list<Element>(
    _ message: NetlinkMessageBuilder, answers type: Int, _ operation: String,
    _ decode: (NetlinkMessage) throws(MalformedNetlink) -> Element?
  ) throws(NetlinkError) -> [Element] {
    try Self.decode(try socket.dump(message, operation: operation), type, operation, decode)
  }

  static func decode<Element>(
    _ messages: [NetlinkMessage], _ type: Int, _ operation: String,
    _ decode: (NetlinkMessage) throws(MalformedNetlink) -> Element?
  ) throws(NetlinkError) -> [Element] {
    var elements: [Element] = []
    do throws(MalformedNetlink) {
      for message in messages where Int(message.type) == type {
        if let element = try decode(message) { elements.append(element) }
      }
    } catch {
      throw .malformed(operation: operation, error)
    }
    return elements
  }
}

/// Runs `body`, whose refusal with one of `codes` means that what it wanted is so already.
func tolerating(_ codes: CInt..., body: () throws(NetlinkError) -> Void) throws(NetlinkError) {
  do throws(NetlinkError) {
    try body()
  } catch {
    guard let code = error.errno, codes.contains(code) else { throw error }
  }
}
