import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import NFTables

/// Engine tests on the real nf_tables, each in a network namespace of its own.
@Suite struct KernelTests {
  /// A little of everything that makes chains and elements.
  static func tables() -> Tables {
    var tables = Tables()
    _ = tables.change { delta in
      delta.clusterIP(1, "10.96.0.1")
      delta.set(1, backends: [at("10.244.1.2", 8080), at("10.244.2.2", 8080)])
      delta.clusterIP(2, "10.96.0.2", .udp, 53, affinity: true)
      delta.set(2, backends: [at("10.244.1.3", 53), at("10.244.2.3", 53), at("10.244.2.4", 53)], affinity: 60)
      delta.clusterIP(3, "fd00:10:96::3")
      delta.set(3, .v6, backends: [at("fd00:10:244:1::2", 8080)])
      delta.frontends[FrontendKey(.node(.v4), .tcp, at("0.0.0.0", 30080).port)] = Change(
        old: nil,
        new: Frontend(
          service: id(1), kind: .nodePort, nodeScope: .cluster, outsideScope: .local, masquerade: .hostOnly))
      delta.set(1, scope: .local, backends: [at("10.244.1.2", 8080)])
      delta.frontends[FrontendKey(.address(ip("203.0.113.9")), .tcp, at("0.0.0.0", 80).port)] = Change(
        old: nil,
        new: Frontend(
          service: id(1), kind: .loadBalancer, nodeScope: .cluster, outsideScope: .cluster, masquerade: .always,
          sourceRanges: [AddressRange(cidr("192.0.2.0/24")), AddressRange(cidr("255.255.255.255/32"))]))
      delta.sets[BackendSetID(service: id(1), scope: .cluster, family: .v4)] = Change(
        old: nil, new: BackendSet(backends: [at("10.244.1.2", 8080), at("10.244.2.2", 8080)], emptyAction: .reject))
      delta.serviceRanges.added = [cidr("10.96.0.0/16"), cidr("fd00:10:96::/112")]
      delta.nodePortAddresses.added = [ip("192.168.100.1")]
      delta.clusterRanges.added = [cidr("10.244.0.0/16"), cidr("fd00:10:244::/48")]
      delta.internalAddresses = [.v4: Change(old: nil, new: ip("192.168.100.1"))]
      delta.endpoints["sl0"] = Change(
        old: nil,
        new: LocalEndpoint(
          interface: "sl0", mac: MACAddress("02:00:00:00:00:01").unsafelyUnwrapped,
          addresses: [ip("10.244.1.2"), ip("fd00:10:244:1::2")]))
    }
    return tables
  }

  @Test("what was programmed reads back without a difference, and a second sync changes nothing")
  func readsBack() throws {
    try inNamespace {
      let tables = Self.tables()
      var engine = try NFTablesEngine()
      let first = try engine.resync(tables)
      #expect(!first.drift.isEmpty)
      #expect(try engine.verify(tables) == [])
      let second = try engine.resync(tables)
      #expect(second.drift == [])
      #expect(second.report.batches == 0)
      #expect(try !engine.wasChangedByOthers())
    }
  }

  @Test("nft lists the ruleset without an error and names what it shows")
  func listsWell() throws {
    try inNamespace {
      var engine = try NFTablesEngine()
      _ = try engine.resync(Self.tables())
      let listing = try run("nft list ruleset")
      print(listing.output)
      #expect(listing.status == 0)
      #expect(!listing.output.contains("invalid type"))
      #expect(listing.output.contains("10.96.0.1 . tcp . 80 : 0x00000001"))
    }
  }
}

/// Runs `body` in a fresh network namespace, on a thread of its own.
func inNamespace(_ body: @escaping @Sendable () throws -> Void) throws {
  let namespace = try AnonymousNetworkNamespace()
  try namespace.namespace.run(body)
}

/// Runs a shell command in the caller's namespace.
func run(_ command: String) throws -> (status: Int32, output: String) {
  guard let pipe = popen(command + " 2>&1", "r") else {
    throw NFTablesError(operation: "popen", object: command, errno: errno)
  }
  var output: [UInt8] = []
  var buffer = [UInt8](repeating: 0, count: 65536)
  while true {
    let count = fread(&buffer, 1, buffer.count, pipe)
    guard count > 0 else { break }
    output += buffer[..<count]
  }
  return (pclose(pipe), String(decoding: output, as: UTF8.self))
}
