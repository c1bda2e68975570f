import Foundation
import Glibc
import LocalAPI
import Logging
import ServiceLifecycle
import Testing

@testable import ProxyAgent

/// An agent that serves its local API.
private final class ServingAgent: Sendable {
  let agent: AgentUnderTest
  let ring: EventRing
  let socket: String
  private let group: ServiceGroup
  private let running: Task<Void, any Error>

  init() async throws {
    agent = try await AgentUnderTest()
    socket = agent.folder + "/agent.sock"
    ring = await agent.reconciler.events
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    group = ServiceGroup(
      configuration: .init(
        services: [.init(service: HTTPServers.local(agent.reconciler, socket: socket, logger))], logger: logger))
    running = Task { [group] in try await group.run() }
    try await until("the agent answers") { [socket] in access(socket, F_OK) == 0 }
  }

  func end() async throws {
    await group.triggerGracefulShutdown()
    try await running.value
  }

  /// A request, on a thread of its own: the client blocks.
  func get(_ target: String) async throws -> (status: Int, json: JSONValue) {
    let client = UnixHTTPClient(path: socket)
    return try await onThread {
      let answer = try client.request("GET", target)
      return (answer.status, try JSONValue(parsing: answer.body))
    }
  }
}

/// Runs what blocks without holding one of the pool's few threads.
private func onThread<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) async throws -> Result {
  try await withCheckedThrowingContinuation { continuation in
    Thread { continuation.resume(with: Swift.Result(catching: body)) }.start()
  }
}

private struct TimedOut: Error { var what: String }

/// Waits until something holds, at most a minute.
private func until(_ what: String, _ holds: () throws -> Bool) async throws {
  for _ in 0..<6000 {
    if try holds() { return }
    try await Task.sleep(for: .milliseconds(10))
  }
  throw TimedOut(what: what)
}

@Suite("The local API about policy") struct PolicyRoutesTests {
  private static func event(_ length: Int) -> PolicyEvent {
    var event = PolicyEvent(time: .init(seconds: 1, microseconds: 0), kind: .drop)
    event.length = length
    return event
  }

  @Test("each route answers, and says by status and words what is wrong")
  func statuses() async throws {
    let server = try await ServingAgent()
    for (target, status, error) in [
      ("/v1/policies", 200, ""), ("/v1/policies?namespace=shop&name=deny-db", 200, ""), ("/v1/policies/diff", 200, ""),
      ("/v1/identities", 200, ""),
      ("/v1/explain?source=shop%2Fcart-1&destination=shop%2Fdb&port=5432", 200, ""),
      ("/v1/policies?nmespace=shop", 400, "nmespace: unknown argument"),
      ("/v1/policies?name=a&name=b", 400, "name: given twice"),
      ("/v1/explain?source=shop/x&destination=shop/db", 400, "port: missing"),
      ("/v1/explain?source=shop/x&destination=shop/db&port=1", 404, "source: no Pod of the name 'shop/x'"),
      ("/v1/monitor?type=lbs", 400, "type: 'lbs' is none of drop, audit, verdict, lb, trace"),
      (
        "/v1/monitor?type=drop,lb,trace", 400,
        "type: 'lb', 'trace' events: not by the nftables engine, which logs drops and audits only"
      ),
    ] {
      let answer = try await server.get(target)
      #expect(answer.status == status, "\(target)")
      if error.isEmpty {
        #expect(answer.json["apiVersion"] == "sluice.dev/v1", "\(target)")
      } else {
        #expect(answer.json["error"] == .string(error), "\(target)")
      }
    }
    try await server.end()
  }

  @Test("monitor tells what there is and ends, or goes on with what comes until the client has enough")
  func monitor() async throws {
    let server = try await ServingAgent()
    server.ring.append([Self.event(1), Self.event(2), Self.event(3)])
    let client = UnixHTTPClient(path: server.socket)
    let ring = server.ring
    let finite = try await onThread {
      let box = Box()
      try client.stream("/v1/monitor?last=2") { line in
        box.lines.append(line)
        return true
      }
      return box.lines
    }
    #expect(try finite.map { try JSONValue(parsing: Array($0.utf8))["length"] } == [2, 3])
    let followed = try await onThread {
      let box = Box()
      try client.stream("/v1/monitor?last=1&follow=true") { line in
        box.lines.append(line)
        if box.lines.count < 3 { ring.append([Self.event(3 + box.lines.count)]) }
        return box.lines.count < 3
      }
      return box.lines
    }
    #expect(try followed.map { try JSONValue(parsing: Array($0.utf8))["length"] } == [3, 4, 5])
    // The client has gone: its reader goes too, although nothing happens.
    try await until("no reader is left") { ring.waitingReaders == 0 }
    try await server.end()
  }

  /// Used by one thread at a time.
  private final class Box: @unchecked Sendable { var lines: [String] = [] }

  @Test("a client that vanishes before anything happens leaves no reader", .timeLimit(.minutes(2)))
  func vanished() async throws {
    let server = try await ServingAgent()
    let descriptor = try Self.connect(server.socket)
    try await until("it waits") { server.ring.waitingReaders == 1 }
    close(descriptor)
    try await until("no reader is left") { server.ring.waitingReaders == 0 }
    try await server.end()
  }

  @Test("clients that wait, or never read, do not keep the agent from ending", .timeLimit(.minutes(2)))
  func shutdown() async throws {
    let server = try await ServingAgent()
    let waiting = try Self.connect(server.socket)
    try await until("it waits") { server.ring.waitingReaders == 1 }
    let stuck = try Self.connect(server.socket)
    try await until("both wait") { server.ring.waitingReaders == 2 }
    // More than any socket buffer holds.
    for _ in 0..<20 { server.ring.append((0..<1000).map { Self.event($0) }) }
    try await server.end()
    close(stuck)
    close(waiting)
  }

  /// Asks for events and reads nothing.
  private static func connect(_ path: String) throws -> CInt {
    let descriptor = Glibc.socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let connected = withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    let request = "GET /v1/monitor?follow=true HTTP/1.1\r\nHost: agent\r\n\r\n"
    guard connected == 0, send(descriptor, request, request.utf8.count, 0) == request.utf8.count else {
      throw TimedOut(what: "connect: errno \(errno)")
    }
    return descriptor
  }
}
