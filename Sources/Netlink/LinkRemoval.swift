import CLinux
import Glibc

/// What has a netlink socket open.
public protocol NetlinkClient: AnyObject {
  /// Valid while it lives.
  var descriptorNumber: CInt { get }
}

/// Removes links and does not wait longer than until they are gone: nobody finds them, and their names are free.
///
/// The kernel tells of that after a millisecond. What it needs then, some 20 to 40 ms, is until all processors have let go of what a
/// link was and its memory can be freed; it lets whoever asked wait for that too. Here a process of its own waits, which runs no
/// program and ends by itself. To close a socket of nf_tables takes as long while chains that were removed are not forgotten, and
/// whoever changes others, or removes a link that has one, waits too: so it has those sockets as well, and closes them later.
public struct LinkRemoval {
  private let node: RouteSocket
  private var held: [any NetlinkClient] = []

  public init(_ node: RouteSocket) { self.node = node }

  /// Has `client`'s socket closed by whoever waits. It may still be used after the removal.
  public mutating func hold(_ client: some NetlinkClient) { held.append(client) }

  /// Succeeds also where there are none of these names.
  public func remove(named names: [String]) throws {
    var waiting: [Int: String] = [:]
    for name in names where RouteSocket.isPossibleName(name) {
      if let index = try SystemCalls.interfaceIndex(of: name) { waiting[index] = name }
    }
    guard !waiting.isEmpty else { return }
    do {
      try removeApart(&waiting)
    } catch is SystemError {
      // No room for a process, or for one more socket: then it takes longer.
    }
    for (index, name) in waiting { try node.deleteLink(index: index, called: name) }
  }

  /// How long the kernel may take before it is asked itself.
  private static let patienceMilliseconds = 5_000
  private static let operation = "delete link"

  /// Those that stay in `waiting` are not known to be gone.
  private func removeApart(_ waiting: inout [Int: String]) throws {
    let socket = try NetlinkSocket(protocol: NETLINK_ROUTE, groups: [RTNLGRP_LINK.rawValue])
    let kept = held.map(\.descriptorNumber)
    var asked: [UInt32: Int] = [:]
    for index in waiting.keys.sorted() {
      let message = RouteSocket.deletion(ofLink: index)
      asked[try socket.sendApart(message, keeping: kept, operation: Self.operation)] = index
    }
    let end = SystemCalls.monotonicMilliseconds() + Self.patienceMilliseconds
    while !waiting.isEmpty {
      let left = end - SystemCalls.monotonicMilliseconds()
      // Of some it was not told, or too late, or nothing that can be read.
      guard left > 0, case .messages(let messages)? = try? socket.receiveEvents(timeoutMilliseconds: left)
      else { return }
      for message in messages {
        if case .linkRemoved(let link)? = try? RouteMonitor.event(message) {
          waiting[link.index] = nil
        } else if CInt(message.type) == NLMSG_ERROR, let index = asked[message.sequence] {
          let name = waiting[index] ?? "#\(index)"
          if let error = try NetlinkSocket.refusal(in: message, Self.operation, name), error.errno != ENODEV {
            throw NetlinkError.system(error)
          }
          waiting[index] = nil
        }
      }
    }
  }
}
