import BPFPrograms
import CLibBPF
import DataplaneModel
import Testing

@testable import BPFLoader

/// The structures of bpf/include/tables.h, as the compiled program's BTF has them, against those in Swift.
@Suite("Layouts") struct LayoutTests {
  private struct Wanted {
    var name: String
    var size: Int
    /// Offset of each member in bytes, nil for padding that Swift names otherwise.
    var members: [String: Int?]

    init<Layout: MapLayout>(_ name: String, _ type: Layout.Type, _ members: [String: PartialKeyPath<Layout>?]) {
      self.name = name
      size = MemoryLayout<Layout>.stride
      self.members = members.mapValues { path in path.map { MemoryLayout<Layout>.offset(of: $0) ?? -1 } }
    }
  }

  private static let sockets = [
    Wanted("address", AddressLayout.self, ["words": nil]),
    Wanted(
      "frontend_key", FrontendKeyLayout.self,
      ["address": \.address, "port": \.port, "proto": \.proto, "pad": \.pad]),
    Wanted(
      "frontend", FrontendLayout.self,
      [
        "service": \.service, "source_list": \.sourceList, "kind": \.kind, "node_scope": \.nodeScope,
        "outside_scope": \.outsideScope, "masquerade": \.masquerade,
      ]),
    Wanted(
      "set_key", SetKeyLayout.self, ["service": \.service, "scope": \.scope, "family": \.family, "pad": \.pad]),
    Wanted(
      "backend_set", BackendSetLayout.self,
      ["count": \.count, "affinity": \.affinity, "empty_action": \.emptyAction, "is_hashed": \.isHashed, "pad": \.pad]),
    Wanted("slot_key", SlotKeyLayout.self, ["set": \.set, "slot": \.slot]),
    Wanted("backend", BackendLayout.self, ["address": \.address, "port": \.port, "pad": \.pad]),
    Wanted("member_key", MemberKeyLayout.self, ["set": \.set, "backend": \.backend]),
    Wanted(
      "source_key", SourceKeyLayout.self,
      ["prefix_length": \.prefixLength, "list": \.list, "address": \.address]),
    Wanted("client", ClientLayout.self, ["v4": \.v4, "v6": \.v6, "flags": \.flags, "pad": \.pad]),
    Wanted("affinity_key", AffinityKeyLayout.self, ["client": \.client, "service": \.service]),
    Wanted("affinity", AffinityLayout.self, ["backend": \.backend, "pad": \.pad, "used": \.used]),
    Wanted("connection", ConnectionLayout.self, ["told": \.told, "real": \.real]),
    Wanted("peer_key", PeerKeyLayout.self, ["cookie": \.cookie, "peer": \.peer, "pad": \.pad]),
  ]

  private static let packets = [
    Wanted(
      "endpoint", EndpointLayout.self,
      [
        "ingress": \.ingress, "egress": \.egress, "flags": \.flags, "mac": \.mac, "pad": \.pad, "v4": \.v4,
        "v6": \.v6,
      ]),
    Wanted(
      "pod_device", PodDeviceLayout.self,
      ["device": \.device, "flags": \.flags, "mac": \.mac, "gateway_mac": \.gatewayMAC]),
    Wanted(
      "range_key", RangeKeyLayout.self,
      ["prefix_length": \.prefixLength, "table": \.table, "address": \.address]),
    Wanted("pair_key", PairKeyLayout.self, ["subject": \.subject, "identity": \.identity]),
    Wanted("pair", PairLayout.self, ["port_set": \.portSet, "attribution": \.attribution]),
    Wanted(
      "port_key", PortKeyLayout.self,
      [
        "prefix_length": \.prefixLength, "port_set": \.portSet, "proto": \.proto, "port": \.portHigh, "pad": \.pad,
      ]),
    Wanted("clause_key", ClauseKeyLayout.self, ["attribution": \.attribution, "clause": \.clause]),
    Wanted("counter", CounterLayout.self, ["packets": \.packets, "bytes": \.bytes]),
    Wanted("uplink", UplinkLayout.self, ["v4": \.v4, "v6": \.v6, "header_length": \.headerLength]),
    Wanted(
      "tuple", TupleLayout.self,
      [
        "source": \.source, "destination": \.destination, "source_port": \.sourcePort,
        "destination_port": \.destinationPort, "proto": \.proto, "step": \.step, "pad": \.pad,
      ]),
    Wanted(
      "flow", FlowLayout.self,
      ["seen": \.seen, "revision": \.revision, "state": \.state, "flags": \.flags, "closed": \.closed, "pad": \.pad]),
    Wanted(
      "translation", TranslationLayout.self, ["to": \.to, "set": \.set, "is_masquerade": \.isMasquerade]),
    Wanted(
      "fragment_key", FragmentKeyLayout.self,
      ["source": \.source, "destination": \.destination, "id": \.id]),
    Wanted(
      "fragment", FragmentLayout.self,
      [
        "source_port": \.sourcePort, "destination_port": \.destinationPort, "proto": \.proto, "pad": \.pad1,
      ]),
    Wanted(
      "event", EventLayout.self,
      [
        "time": \.time, "kind": \.kind, "reason": \.reason, "file": \.file, "direction": \.direction, "line": \.line,
        "attribution": \.attribution, "clause": \.clause, "revision": \.revision, "identity": \.identity,
        "device": \.device, "length": \.length, "tuple": \.tuple, "other": \.other, "tcp_flags": \.tcpFlags,
        "icmp_type": \.icmpType, "is_answer": \.isAnswer, "pad": \.pad1,
      ]),
  ]

  @Test("every structure has the size, members and offsets that the program was compiled with")
  func structures() throws {
    for (program, structures) in [(BPFProgram.sock, Self.sockets), (.endpoint, Self.packets), (.uplink, Self.packets)] {
      let object = try BPFObject(program)
      for wanted in structures {
        let (size, members) = try #require(object.structure(wanted.name), "struct \(wanted.name) is not in BTF")
        #expect(size == wanted.size, "struct \(wanted.name)")
        #expect(Set(members.keys) == Set(wanted.members.keys), "struct \(wanted.name)")
        for case (let name, let offset?) in wanted.members {
          #expect(members[name] == offset, "\(wanted.name).\(name)")
        }
      }
    }
  }

  @Test("every drop reason has a counter, and denials have one for each direction")
  func reasons() throws {
    // 0 is none.
    #expect(try BPFObject(.endpoint).shape(of: "drops").maximum == 1 + DropReason.allCases.count + 2)
  }

  @Test("every map's key and value is one of them, or a number")
  func maps() throws {
    let sizes = Set((Self.sockets + Self.packets).map(\.size) + [4, 8, MemoryLayout<AddressLayout>.size])
    for (program, count) in [(BPFProgram.sock, 11), (.endpoint, 32), (.uplink, 32)] {
      let object = try BPFObject(program)
      #expect(object.mapNames.count == count, "\(program.name): \(object.mapNames)")
      // A ring has neither; working memory is nobody else's.
      for map in object.mapNames where map != "events" && map != "memory" {
        let shape = try object.shape(of: map)
        #expect(sizes.contains(shape.keySize) && sizes.contains(shape.valueSize), "\(program.name): \(map)")
      }
    }
  }

  @Test(
    "addresses are as on the wire, IPv4 as ::ffff:a.b.c.d, and come back",
    arguments: [
      ("10.1.2.3", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 1, 2, 3]),
      ("0.0.0.0", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0]),
      ("fd00:1:2:3:4:5:6:7", [0xfd, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7]),
      ("::", [UInt8](repeating: 0, count: 16)),
    ] as [(String, [UInt8])])
  func addresses(text: String, bytes: [UInt8]) {
    let layout = AddressLayout(ip(text))
    #expect(withUnsafeBytes(of: layout) { Array($0) } == bytes)
    #expect(layout.address == ip(text))
  }
}

extension BPFObject {
  /// Size and member offsets in bytes.
  fileprivate func structure(_ name: String) -> (size: Int, members: [String: Int])? {
    guard let btf = typeInformation else { return nil }
    let id = btf__find_by_name_kind(btf, name, 4)  // BTF_KIND_STRUCT
    guard id > 0, let type = btf__type_by_id(btf, UInt32(id)), let list = btf_members(type) else { return nil }
    var members: [String: Int] = [:]
    for index in 0..<Int(btf_vlen(type)) {
      guard let member = btf__name_by_offset(btf, list[index].name_off) else { continue }
      members[String(cString: member)] = Int(btf_member_bit_offset(type, UInt32(index))) / 8
    }
    return (Int(type.pointee.size), members)
  }
}
