import CLinux
import Glibc
import LocalAPI
import NetworkTypes

/// What a traffic server listens on, and how it introduces itself.
public struct TrafficServerConfiguration: Sendable {
  /// The pod's name and its node's, as they appear in every answer.
  public var name: String
  public var node: String
  /// Ports that greet with one line (`pod=… client=… port=…`) and then echo every line.
  public var tcp: [Port] = []
  /// Ports that answer each datagram with the greeting, a line feed, and the datagram itself.
  public var udp: [Port] = []
  /// Ports that answer any HTTP/1.1 request with JSON `{"pod","node","client","port","protocol"}`.
  public var http: [Port] = []
  public var families: [IPFamily] = [.v4, .v6]

  public init(name: String, node: String) {
    self.name = name
    self.node = node
  }
}

/// A server for TCP, UDP and HTTP on one thread: what runs in the lab's pods.
///
/// It answers who it is and whom it sees, so that a client learns which backend a Service chose and which source address
/// arrived there.
public final class TrafficServer {
  private enum Role {
    case lineListener(Port)
    case httpListener(Port)
    case datagrams(Port)
    case connection(TrafficConnection)
  }

  /// Peers that never read would otherwise make the server hold their answers for ever.
  private static let bufferLimit = 1 << 20

  private let configuration: TrafficServerConfiguration
  private let poller: Poller
  private var sockets: [(socket: Socket, role: Role)?] = []
  private var buffer = [UInt8](repeating: 0, count: 65_536)

  /// Listens on everything in the configuration when it returns; connections are accepted by the kernel from then on.
  public init(_ configuration: TrafficServerConfiguration) throws(LabError) {
    self.configuration = configuration
    poller = try Poller()
    for family in configuration.families {
      for port in configuration.tcp { try listen(family, port, .lineListener(port)) }
      for port in configuration.http { try listen(family, port, .httpListener(port)) }
      for port in configuration.udp {
        let socket = try Socket(family, SOCK_DGRAM)
        try bind(socket, family, port, "udp")
        // A burst of a thousand datagrams must not be lost here: a lost one counts as the dataplane's fault.
        socket.set(SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        try register(socket, .datagrams(port))
      }
    }
  }

  private func listen(_ family: IPFamily, _ port: Port, _ role: Role) throws(LabError) {
    let socket = try Socket(family, SOCK_STREAM)
    socket.set(SOL_SOCKET, SO_REUSEADDR, 1)
    try bind(socket, family, port, "tcp")
    guard Glibc.listen(socket.descriptor, 4096) == 0 else {
      throw .system(operation: "listen", object: "tcp \(family) port \(port)", errno: errno)
    }
    try register(socket, role)
  }

  private func bind(_ socket: Socket, _ family: IPFamily, _ port: Port, _ name: String) throws(LabError) {
    let code = socket.bind(.unspecified(family), port: port.number)
    guard code == 0 else { throw .system(operation: "bind", object: "\(name) \(family) port \(port)", errno: code) }
  }

  private func register(_ socket: Socket, _ role: Role) throws(LabError) {
    let index = Int(socket.descriptor)
    while sockets.count <= index { sockets.append(nil) }
    sockets[index] = (socket, role)
    try poller.add(socket, .read, token: UInt64(index))
  }

  /// Serves until the process ends.
  public func run() throws(LabError) -> Never {
    while true { try step(milliseconds: nil) }
  }

  /// Handles what has arrived, waiting at most that long for something (nil: for ever).
  func step(milliseconds: Int?) throws(LabError) {
    for (token, ready) in poller.wait(milliseconds: milliseconds) {
      guard let entry = sockets[Int(token)] else { continue }
      switch entry.role {
      case .lineListener(let port): try accept(entry.socket, port, http: false)
      case .httpListener(let port): try accept(entry.socket, port, http: true)
      case .datagrams(let port): answerDatagrams(entry.socket, port)
      case .connection(let connection): try serve(connection, entry.socket, ready)
      }
    }
  }

  private func accept(_ listener: Socket, _ port: Port, http: Bool) throws(LabError) {
    var peer = SocketAddressBuffer()
    while true {
      let descriptor = peer.withPointer { Glibc.accept(listener.descriptor, $0, &$1) }
      guard descriptor >= 0 else { return }
      let socket = Socket(owning: descriptor)
      let connection = TrafficConnection(client: peer.address, port: port, isHTTP: http)
      if !http {
        // Sent here, not in a later turn of the loop: most probes end with this line.
        socket.set(Int32(IPPROTO_TCP), TCP_NODELAY, 1)
        connection.output = Array(greeting(peer.address, port).utf8) + [UInt8(ascii: "\n")]
        guard flush(connection, socket) else { continue }
      }
      try register(socket, .connection(connection))
    }
  }

  private func greeting(_ client: SocketAddress?, _ port: Port) -> String {
    "pod=\(configuration.name) client=\(client?.description ?? "?") port=\(port)"
  }

  private func answerDatagrams(_ socket: Socket, _ port: Port) {
    var peer = SocketAddressBuffer()
    // Bounded, so that a flood on one port does not starve the others.
    for _ in 0..<256 {
      let flags = Int32(MSG_DONTWAIT)
      let count = buffer.withUnsafeMutableBytes { bytes in
        peer.withPointer { recvfrom(socket.descriptor, bytes.baseAddress, bytes.count, flags, $0, &$1) }
      }
      // An ICMP error of an earlier answer is reported here once; the next datagram is unharmed.
      guard count >= 0 || errno == ECONNREFUSED else { return }
      guard count >= 0, let client = peer.address else { continue }
      let answer = Array(greeting(client, port).utf8) + [UInt8(ascii: "\n")] + buffer[0..<count]
      _ = withSockaddr(client.address, client.port.number) { address, length in
        answer.withUnsafeBytes { sendto(socket.descriptor, $0.baseAddress, $0.count, flags, address, length) }
      }
    }
  }

  private func serve(_ connection: TrafficConnection, _ socket: Socket, _ ready: Poller.Interest) throws(LabError) {
    let index = Int(socket.descriptor)
    if ready.contains(.read) || ready.contains(.error) || ready.contains(.hangUp) {
      let count = socket.receive(&buffer)
      if count > 0 {
        connection.input += buffer[0..<count]
        if connection.isHTTP { answerRequests(connection) } else { connection.echoLines() }
      } else if count == 0 {
        connection.isClosing = true
      } else if count != -Int(EAGAIN), count != -Int(EINTR) {
        sockets[index] = nil
        return
      }
    }
    let pending = connection.input.count + connection.output.count
    guard flush(connection, socket), pending <= Self.bufferLimit, !connection.isDone else {
      sockets[index] = nil
      return
    }
    if connection.waitsForWrite != !connection.output.isEmpty {
      connection.waitsForWrite.toggle()
      try poller.change(socket, connection.waitsForWrite ? [.read, .write] : .read, token: UInt64(index))
    }
  }

  /// Sends what it can. False when the connection is broken.
  private func flush(_ connection: TrafficConnection, _ socket: Socket) -> Bool {
    while !connection.output.isEmpty {
      let count = socket.send(connection.output)
      guard count >= 0 else { return count == -Int(EAGAIN) || count == -Int(EINTR) }
      connection.output.removeFirst(count)
    }
    return true
  }

  private func answerRequests(_ connection: TrafficConnection) {
    while let head = connection.takeRequestHead() {
      let body: JSONValue = [
        "pod": .string(configuration.name), "node": .string(configuration.node),
        "client": .string(connection.client?.description ?? "?"), "port": .int(Int64(connection.port.number)),
        "protocol": "http",
      ]
      let text = body.serialized() + "\n"
      let close = head.asksToClose
      connection.output += Array(
        """
        HTTP/1.1 200 OK\r
        Content-Type: application/json\r
        Content-Length: \(text.utf8.count)\r
        Connection: \(close ? "close" : "keep-alive")\r
        \r
        \(text)
        """.utf8)
      if close { connection.isClosing = true }
    }
  }
}

/// One accepted connection: who it is from, and the bytes that are on their way.
final class TrafficConnection {
  struct RequestHead {
    let asksToClose: Bool
  }

  let client: SocketAddress?
  let port: Port
  let isHTTP: Bool
  var input: [UInt8] = []
  var output: [UInt8] = []
  /// Nothing more comes in; what is in `output` still goes out.
  var isClosing = false
  var waitsForWrite = false

  init(client: SocketAddress?, port: Port, isHTTP: Bool) {
    self.client = client
    self.port = port
    self.isHTTP = isHTTP
  }

  var isDone: Bool { isClosing && output.isEmpty }

  /// Moves every complete line from input to output.
  func echoLines() {
    guard let end = input.lastIndex(of: UInt8(ascii: "\n")) else { return }
    output += input[...end]
    input.removeSubrange(...end)
  }

  /// Takes one request without a body off the input; nil while it is incomplete.
  func takeRequestHead() -> RequestHead? {
    let end: [UInt8] = [13, 10, 13, 10]
    guard input.count >= end.count,
      let start = (0...(input.count - end.count)).first(where: { input[$0..<($0 + 4)].elementsEqual(end) })
    else { return nil }
    let head = String(decoding: input[..<start], as: UTF8.self).lowercased()
    input.removeSubrange(..<(start + end.count))
    let lines = head.split(separator: "\r\n")
    let isOldVersion = lines.first?.hasSuffix("http/1.0") ?? false
    let connection = lines.first { $0.hasPrefix("connection:") }
    return RequestHead(
      asksToClose: connection?.contains("close") ?? isOldVersion && !(connection?.contains("keep-alive") ?? false))
  }
}
