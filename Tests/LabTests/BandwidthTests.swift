// Pods that the runtime wants slowed down, by real streams.
import Glibc
import Lab
import LocalAPI
import Netlink
import NetworkTypes
import Synchronization
import Testing

@testable import Lab

@Suite("A pod with limited bandwidth", .serialized, .enabled(if: LabHarness.canRun("sluice-agent", "sluice")))
struct BandwidthTests {
  /// Bytes a second.
  private static let rate = 2_000_000
  private static let burst = 64_000
  private static let size = 2_000_000

  @Test("gets and sends at its rate in the direction that is limited, freely in the other, from near and far")
  func limits() throws {
    try LabHarness.withLab(LabHarness.configuration("bandwidth")) { lab in
      func pod(_ name: String, on node: String, _ bandwidth: PodSpec.Bandwidth? = nil) throws -> LabPod {
        var spec = PodSpec("shop", name, node: node)
        spec.bandwidth = bandwidth
        return try lab.addPod(spec)
      }
      let limit = PodSpec.Bandwidth.Limit(rate: Int64(Self.rate * 8), burst: Int64(Self.burst * 8))
      let slow = [
        "ingress": try pod("gets", on: "node1", .init(ingress: limit)),
        "egress": try pod("sends", on: "node1", .init(egress: limit)),
      ]
      let others = [try pod("near", on: "node1"), try pod("far", on: "node2")]
      let own = Set(
        slow.values.filter { $0.spec.bandwidth?.egress != nil }.map {
          AttachmentName($0.containerID, "eth0").shaperInterface
        })
      let route = try RouteSocket(in: try lab.network(of: .node("node1")))
      func shapers() throws -> Set<String> { Set(try route.links().map(\.name).filter { $0.hasPrefix("slb") }) }
      #expect(try shapers() == own)
      for (direction, pod) in slow {
        for other in others {
          for family in IPFamily.allCases {
            for (way, from, to) in [("ingress", other, pod), ("egress", pod, other)] {
              let perSecond = try Self.stream(lab, from: from, to: to, family)
              let what = "\(pod.name), limited \(direction): \(way) with \(other.name), \(family): \(perSecond) bytes/s"
              print("bandwidth: \(what)")
              if way == direction {
                // Less than the rate by headers and what was dropped; more by the burst.
                #expect(perSecond < Self.rate + 2 * Self.burst && perSecond > Self.rate / 2, "\(what)")
              } else {
                #expect(perSecond > 4 * Self.rate, "\(what)")
              }
            }
          }
        }
      }
      for pod in slow.values { try lab.removePod(pod.name, graceful: false) }
      #expect(try shapers() == [])
    }
  }

  /// - Returns: how many bytes a second of a stream arrived.
  private static func stream(_ lab: Lab, from: LabPod, to: LabPod, _ family: IPFamily) throws -> Int {
    let address = try #require(to.address(family))
    let listener = try lab.network(of: .pod(to.name)).run { try StreamSocket(listening: family) }
    let received = BackgroundWork { _ in try listener.receiveAll() }
    let port = try listener.port()
    try lab.network(of: .pod(from.name)).run {
      try StreamSocket(connectedTo: address, port).send(bytes: size)
    }
    let (count, nanoseconds) = try received.wait()
    #expect(count == size)
    return Int(Double(count) / (Double(nanoseconds) / 1e9))
  }
}

/// A TCP socket for one stream in one direction.
private final class StreamSocket: Sendable {
  private let descriptor: CInt

  init(listening family: IPFamily) throws {
    descriptor = socket(family == .v4 ? AF_INET : AF_INET6, CInt(SOCK_STREAM.rawValue), 0)
    // Not bound: the kernel chooses the port, on all addresses.
    guard listen(descriptor, 1) == 0 else { throw LabError.system(operation: "listen", object: "", errno: errno) }
  }

  init(connectedTo address: IPAddress, _ port: UInt16) throws {
    descriptor = socket(address.family == .v4 ? AF_INET : AF_INET6, CInt(SOCK_STREAM.rawValue), 0)
    var bytes = [UInt8](repeating: 0, count: address.family == .v4 ? 16 : 28)
    withUnsafeBytes(of: sa_family_t(address.family.linuxFamily)) { bytes.replaceSubrange(0..<2, with: $0) }
    withUnsafeBytes(of: port.bigEndian) { bytes.replaceSubrange(2..<4, with: $0) }
    let place = address.family == .v4 ? 4 : 8
    bytes.replaceSubrange(place..<(place + address.bytes.count), with: address.bytes)
    let result = bytes.withUnsafeBytes {
      connect(descriptor, $0.assumingMemoryBound(to: sockaddr.self).baseAddress, socklen_t($0.count))
    }
    guard result == 0 else { throw LabError.system(operation: "connect", object: "\(address)", errno: errno) }
  }

  deinit { close(descriptor) }

  func port() throws -> UInt16 {
    var bytes = [UInt8](repeating: 0, count: 28)
    var length = socklen_t(bytes.count)
    let result = bytes.withUnsafeMutableBytes {
      getsockname(descriptor, $0.assumingMemoryBound(to: sockaddr.self).baseAddress, &length)
    }
    guard result == 0 else { throw LabError.system(operation: "getsockname", object: "", errno: errno) }
    return UInt16(bytes[2]) << 8 | UInt16(bytes[3])
  }

  func send(bytes count: Int) throws {
    let chunk = [UInt8](repeating: 7, count: 1 << 16)
    var left = count
    while left > 0 {
      let sent = Glibc.send(descriptor, chunk, min(left, chunk.count), CInt(MSG_NOSIGNAL))
      guard sent > 0 else { throw LabError.system(operation: "send", object: "", errno: errno) }
      left -= sent
    }
  }

  /// - Returns: how much came, and how long that took from the first byte to the last.
  func receiveAll() throws -> (count: Int, nanoseconds: UInt64) {
    let connection = accept(descriptor, nil, nil)
    guard connection >= 0 else { throw LabError.system(operation: "accept", object: "", errno: errno) }
    defer { close(connection) }
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    var count = 0
    var begin: UInt64 = 0
    while true {
      let received = recv(connection, &chunk, chunk.count, 0)
      guard received >= 0 else { throw LabError.system(operation: "recv", object: "", errno: errno) }
      if count == 0 { begin = monotonicNanoseconds() }
      if received == 0 { return (count, max(1, monotonicNanoseconds() - begin)) }
      count += received
    }
  }
}
