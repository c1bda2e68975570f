import Foundation
import Synchronization

/// Stands between a client and a server on loopback, and does to the bytes what networks do: tears connections in the middle of
/// anything, lets bytes trickle, or swallows all of them without a word.
package final class FaultyRelay: Sendable {
  private struct State {
    var target: UInt16
    var isSilent = false
    /// Tear one connection in so many pieces that pass; 0: none.
    var tearsOneOf = 0
    /// Let one piece in so many trickle.
    var slowsOneOf = 0
    var isStopped = false
    var open: [Int: (client: CInt, server: CInt)] = [:]
    var last = 0
    var torn = 0
    var accepted = 0
  }

  private let listener: CInt
  package let port: UInt16
  private let state: Mutex<State>

  package struct Failed: Error { var errno: CInt }

  package init(to target: Int) throws {
    state = Mutex(State(target: UInt16(target)))
    let listener = socket(AF_INET, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    var address = Self.loopback(0)
    let size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let isBound = withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(listener, $0, size) }
    }
    guard listener >= 0, isBound == 0, listen(listener, 64) == 0 else { throw Failed(errno: errno) }
    var length = size
    _ = withUnsafeMutablePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(listener, $0, &length) }
    }
    port = UInt16(bigEndian: address.sin_port)
    self.listener = listener
    Thread.detachNewThread { [self] in accept() }
  }

  private static func loopback(_ port: UInt16) -> sockaddr_in {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr = in_addr(s_addr: UInt32(0x7f00_0001).bigEndian)
    return address
  }

  // MARK: Faults

  /// Swallows what comes, on connections that are open too; they stay open.
  package func setSilent(_ isSilent: Bool) { state.withLock { $0.isSilent = isSilent } }

  package func set(tearsOneOf: Int, slowsOneOf: Int) {
    state.withLock { ($0.tearsOneOf, $0.slowsOneOf) = (tearsOneOf, slowsOneOf) }
  }

  package func setTarget(_ port: Int) { state.withLock { $0.target = UInt16(port) } }

  /// Connections that were torn, and all that there were.
  package var counts: (torn: Int, accepted: Int) { state.withLock { ($0.torn, $0.accepted) } }

  /// Tears all connections.
  package func tearAll() {
    state.withLock { state in
      for (client, server) in state.open.values { Self.tear(client, server) }
      state.torn += state.open.count
    }
  }

  package func stop() {
    state.withLock { state in
      state.isStopped = true
      for (client, server) in state.open.values { Self.tear(client, server) }
    }
    shutdown(listener, CInt(SHUT_RDWR))
  }

  /// Both ends see a reset, not an end.
  private static func tear(_ client: CInt, _ server: CInt) {
    var linger = linger(l_onoff: 1, l_linger: 0)
    for end in [client, server] {
      setsockopt(end, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout.size(ofValue: linger)))
      shutdown(end, CInt(SHUT_RDWR))
    }
  }

  // MARK: Relaying

  private func accept() {
    while true {
      let client = Glibc.accept(listener, nil, nil)
      guard client >= 0 else {
        if errno == EINTR || errno == ECONNABORTED { continue }
        close(listener)
        return
      }
      let server = socket(AF_INET, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
      var address = Self.loopback(state.withLock { $0.target })
      let isConnected = withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          connect(server, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
      }
      guard isConnected == 0 else {
        close(client)
        close(server)
        continue
      }
      let number = state.withLock { state in
        state.last += 1
        state.accepted += 1
        state.open[state.last] = (client, server)
        return state.last
      }
      let left = Counter()
      Thread.detachNewThread { [self] in pump(client, server, number, left) }
      Thread.detachNewThread { [self] in pump(server, client, number, left) }
    }
  }

  private final class Counter: Sendable {
    private let value = Mutex(2)
    /// Whether this was the last.
    func leave() -> Bool {
      value.withLock { value in
        value -= 1
        return value == 0
      }
    }
  }

  private func pump(_ from: CInt, _ to: CInt, _ number: Int, _ left: Counter) {
    var bytes = [UInt8](repeating: 0, count: 1 << 14)
    while true {
      let count = read(from, &bytes, bytes.count)
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { break }
      enum Fate { case pass, swallow, tear, trickle }
      let fate: Fate = state.withLock { state in
        if state.isSilent { return .swallow }
        if state.tearsOneOf > 0, Int.random(in: 0..<state.tearsOneOf) == 0 {
          state.torn += 1
          return .tear
        }
        return state.slowsOneOf > 0 && Int.random(in: 0..<state.slowsOneOf) == 0 ? .trickle : .pass
      }
      switch fate {
      case .swallow: continue
      case .pass: send(bytes[..<count], to)
      case .trickle:
        for byte in bytes[..<min(count, 50)] {
          send([byte][...], to)
          usleep(1000)
        }
        send(bytes[min(count, 50)..<count], to)
      case .tear:
        // Some of it still arrives.
        send(bytes[..<Int.random(in: 0..<count)], to)
        Self.tear(from, to)
      }
    }
    shutdown(to, CInt(SHUT_WR))
    guard left.leave() else { return }
    state.withLock { state in
      state.open[number] = nil
      close(from)
      close(to)
    }
  }

  private func send(_ bytes: ArraySlice<UInt8>, _ to: CInt) {
    var rest = bytes
    while !rest.isEmpty {
      let count = rest.withUnsafeBytes { Glibc.send(to, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { return }
      rest = rest.dropFirst(count)
    }
  }
}
