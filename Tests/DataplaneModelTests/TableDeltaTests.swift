import DataplaneModel
import NetworkTypes
import Testing

/// Deltas and the tables they are applied to.
@Suite("Deltas")
struct TableDeltaTests {
  private static func full() throws -> Tables {
    let mac = try #require(MACAddress("0a:00:00:00:00:01"))
    let range = try #require(CIDR("10.96.0.0/16"))
    return try Tables { delta in
      delta.frontends.add(try key("10.96.0.1"), try frontend(1))
      delta.frontends.add(try nodeKey(30080), try frontend(1, .nodePort))
      delta.sets.add(try setID(1), backends(try at("10.244.1.2")))
      delta.serviceAddresses.added = [ip("10.96.0.1"), ip("fd00:96::1")]
      delta.serviceRanges.added = [range]
      delta.endpoints.add("veth1", LocalEndpoint(interface: "veth1", mac: mac, addresses: [ip("10.244.1.2")]))
      delta.nodePortAddresses.added = [ip("192.168.0.1")]
      delta.internalAddresses.add(.v4, ip("192.168.0.1"))
      delta.clusterRanges.added = [range]
    }
  }

  @Test("the delta from nothing makes the same tables again")
  func roundTrip() throws {
    let tables = try Self.full()
    var copy = Tables()
    copy.apply(tables.asDelta)
    #expect(copy == tables)
    #expect(copy.asDelta == tables.asDelta)
    #expect(!tables.asDelta.isEmpty)
    #expect(Tables().asDelta.isEmpty)
  }

  @Test("the opposite of a delta takes everything back")
  func opposite() throws {
    var tables = try Self.full()
    let all = tables.asDelta
    var back = TableDelta()
    back.frontends = all.frontends.mapValues { Change(old: $0.new, new: nil) }
    back.sets = all.sets.mapValues { Change(old: $0.new, new: nil) }
    back.endpoints = all.endpoints.mapValues { Change(old: $0.new, new: nil) }
    back.internalAddresses = all.internalAddresses.mapValues { Change(old: $0.new, new: nil) }
    back.serviceAddresses.removed = all.serviceAddresses.added
    back.serviceRanges.removed = all.serviceRanges.added
    back.nodePortAddresses.removed = all.nodePortAddresses.added
    back.clusterRanges.removed = all.clusterRanges.added
    tables.apply(back)
    #expect(tables == Tables())
  }

  @Test("each part alone makes a delta that is not empty, and reaches the tables")
  func eachPart() throws {
    let all = try Self.full().asDelta
    let parts: [(inout TableDelta) -> Void] = [
      { $0.frontends = all.frontends }, { $0.sets = all.sets }, { $0.serviceAddresses = all.serviceAddresses },
      { $0.serviceRanges = all.serviceRanges }, { $0.endpoints = all.endpoints },
      { $0.nodePortAddresses = all.nodePortAddresses }, { $0.internalAddresses = all.internalAddresses },
      { $0.clusterRanges = all.clusterRanges },
    ]
    for part in parts {
      var delta = TableDelta()
      part(&delta)
      #expect(!delta.isEmpty)
      var tables = Tables()
      tables.apply(delta)
      #expect(tables.asDelta == delta)
    }
  }

  @Test("the change between two sets names what came and what went")
  func setChange() {
    let change = SetChange(from: [1, 2, 3], to: [2, 3, 4])
    #expect(change == SetChange(added: [4], removed: [1]))
    #expect(!change.isEmpty && SetChange(from: [1], to: [1]).isEmpty)
    #expect(!SetChange(removed: [1]).isEmpty)
  }
}
