import Glibc
import NetworkTypes
import Testing

@testable import LocalAPI

/// A folder that is gone with its owner.
final class TemporaryFolder: Sendable {
  let path: String

  init() throws {
    var template = Array("/tmp/sluice-test-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else {
      throw FileError(path: "/tmp", operation: "create temporary folder", errno: errno)
    }
    path = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
  }

  deinit { Self.remove(path) }

  private static func remove(_ path: String) {
    for name in (try? LocalFile.names(in: path)) ?? [] { remove("\(path)/\(name)") }
    if rmdir(path) != 0 { unlink(path) }
  }
}

@Suite("Endpoint records")
struct EndpointRecordTests {
  static func record(_ containerID: String = "c1") throws -> EndpointRecord {
    EndpointRecord(
      network: "net", containerID: containerID, interfaceName: "eth0", hostInterface: "sl0123456789ab",
      mac: try #require(MACAddress("0a:00:00:00:00:01")),
      addresses: [try #require(IPAddress("10.0.1.5")), try #require(IPAddress("fd00::5"))],
      netnsPath: "/run/netns/x", netnsInode: 1 << 63, bootID: "b", podNamespace: "shop", podName: "cart", podUID: nil,
      createdAt: 1_700_000_000)
  }

  @Test("survives JSON, also an inode that a double cannot hold")
  func roundTrip() throws {
    let record = try Self.record()
    let json = try JSONValue(parsing: record.json.serialized())
    #expect(try EndpointRecord(json: json) == record)
  }

  @Test(
    "names the field that is missing or wrong",
    arguments: ["network", "mac", "addresses", "netnsInode", "createdAt", "hostInterface"])
  func fields(field: String) throws {
    for value: JSONValue? in [nil, true, ["x"]] {
      var object = try #require(try Self.record().json.objectValue)
      object[field] = value
      #expect { try EndpointRecord(json: .object(object)) } throws: { ($0 as? FieldError)?.field == field }
    }
  }

  @Test("node facts survive JSON and name a bad range")
  func nodeFacts() throws {
    let facts = NodeFacts(node: "n1", podCIDRs: [try #require(CIDR("10.0.1.0/24"))], mtu: 1450)
    #expect(try NodeFacts(json: facts.json) == facts)
    #expect { try NodeFacts(json: ["node": "n1", "podCIDRs": ["10.0.1.0"]]) } throws: {
      ($0 as? FieldError)?.field == "podCIDRs"
    }
  }

  @Test("a store writes, lists, replaces and removes; a bad file is reported and hides no other")
  func store() throws {
    let folder = try TemporaryFolder()
    let store = EndpointRecordStore(directory: "\(folder.path)/run/endpoints")
    #expect(try store.list().records.isEmpty)
    let first = try Self.record("c1")
    var second = try Self.record("c2")
    try store.write(first)
    try store.write(second)
    second.podName = "other"
    try store.write(second)
    try LocalFile.create("\(store.directory)/bad.json", with: Array("{".utf8))
    try LocalFile.create("\(store.directory)/.half.json", with: [])
    let listing = try store.list()
    #expect(Set(listing.records) == [first, second])
    #expect(listing.unreadable.map(\.path) == ["\(store.directory)/bad.json"])
    #expect(try store.record(network: "net", containerID: "c2", interfaceName: "eth0") == second)
    for _ in 0..<2 { try store.remove(network: "net", containerID: "c1", interfaceName: "eth0") }
    #expect(try store.list().records == [second])
  }

  @Test("derived names keep their value for ever and tell similar identifiers apart in any part")
  func hash() {
    #expect(EndpointRecord.fileName(network: "a", containerID: "b", interfaceName: "c").utf8.count == 37)
    let names = (0..<10_000).map { StableHash.hex128("c\($0)\0eth0") }
    #expect(Set(names.map { $0.prefix(12) }).count == names.count)
    #expect(Set(names.map { $0.dropFirst(12).prefix(10) }).count == names.count)
    #expect(StableHash.hex128("c1\0eth0") == "50ba4940218ddd73fb6595ee3cc3b82e")
  }

  @Test("paths escape what a URL may not hold")
  func paths() {
    #expect(
      AgentPath.endpoint(containerID: "a.b-c", interfaceName: "e%t?1") == "/v1/endpoints/a.b-c/e%25t%3F1")
  }
}
