// Plain sockets for what the traffic tools do not speak: raw HTTP answers, and SCTP.
import Glibc
import NetworkTypes

@testable import Lab

/// One request, and the answer as it came.
enum PlainHTTP {
  struct Answer: Sendable {
    var statusLine: String
    /// By lower-case name.
    var headers: [String: String]
    var body: String
  }

  /// nil where nobody answers within a second.
  static func get(_ target: SocketAddress, path: String) -> Answer? {
    guard let stream = PlainStream(connectingTo: target, protocolNumber: Int32(IPPROTO_TCP)) else { return nil }
    stream.write("GET \(path) HTTP/1.1\r\nHost: \(target)\r\nConnection: close\r\n\r\n")
    let text = stream.readToEnd()
    let parts = text.split(separator: "\r\n\r\n", maxSplits: 1)
    guard parts.count == 2 else { return nil }
    let lines = parts[0].split(separator: "\r\n")
    var headers: [String: String] = [:]
    for line in lines.dropFirst() {
      let pair = line.split(separator: ":", maxSplits: 1)
      guard pair.count == 2 else { continue }
      headers[pair[0].lowercased()] = String(pair[1].drop { $0 == " " })
    }
    return Answer(statusLine: String(lines.first ?? ""), headers: headers, body: String(parts[1]))
  }
}

/// A blocking stream with a time limit of a second for every step, over TCP or one-to-one SCTP.
final class PlainStream: Sendable {
  private let descriptor: Int32

  private init(_ descriptor: Int32) { self.descriptor = descriptor }
  deinit { close(descriptor) }

  private static func open(_ family: IPFamily, _ protocolNumber: Int32) -> Int32 {
    let descriptor = socket(
      Int32(family.linuxFamily), Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), protocolNumber)
    guard descriptor >= 0 else { return descriptor }
    var limit = timeval(tv_sec: 5, tv_usec: 0)
    for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
      setsockopt(descriptor, SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size))
    }
    if family == .v6 {
      var isOn: Int32 = 1
      setsockopt(descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &isOn, socklen_t(MemoryLayout<Int32>.size))
    }
    return descriptor
  }

  /// 0 where the kernel speaks the protocol, else errno.
  static func support(_ protocolNumber: Int32) -> Int32 {
    let descriptor = open(.v4, protocolNumber)
    guard descriptor >= 0 else { return errno }
    close(descriptor)
    return 0
  }

  init?(connectingTo target: SocketAddress, protocolNumber: Int32) {
    descriptor = Self.open(target.address.family, protocolNumber)
    guard descriptor >= 0 else { return nil }
    let result = withSockaddr(target.address, target.port.number) { connect(descriptor, $0, $1) }
    // A failing initializer of a class whose members are set runs deinit, which closes.
    guard result == 0 else { return nil }
  }

  static func listener(_ family: IPFamily, port: Port, protocolNumber: Int32) -> PlainStream? {
    let stream = PlainStream(open(family, protocolNumber))
    guard stream.descriptor >= 0,
      withSockaddr(.unspecified(family), port.number, { bind(stream.descriptor, $0, $1) }) == 0,
      listen(stream.descriptor, 16) == 0
    else { return nil }
    return stream
  }

  /// The next connection and who it is from; nil after a second without one.
  func accept() -> (stream: PlainStream, client: IPAddress?)? {
    var peer = SocketAddressBuffer()
    let accepted = peer.withPointer { Glibc.accept(descriptor, $0, &$1) }
    return accepted >= 0 ? (PlainStream(accepted), peer.address?.address) : nil
  }

  func write(_ text: String) {
    let bytes = Array(text.utf8)
    _ = send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL))
  }

  func read() -> String {
    var buffer = [UInt8](repeating: 0, count: 65_536)
    let count = recv(descriptor, &buffer, buffer.count, 0)
    return count > 0 ? String(decoding: buffer[0..<count], as: UTF8.self) : ""
  }

  func readToEnd() -> String {
    var text = ""
    while true {
      let more = read()
      guard !more.isEmpty else { return text }
      text += more
    }
  }
}
