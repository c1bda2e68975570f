import BPFLoader
import LocalAPI
import NetworkTypes
import Testing

@testable import dpctl

@Suite("Reading the kernel's maps")
struct MapFilterTests {
  private static let key = [
    Field("address", .address(IPAddress("10.0.0.10").unsafelyUnwrapped)), Field("port", .number(80)),
    Field("protocol", .text("tcp")), Field("prefix", .prefix(CIDR("192.0.2.0/24").unsafelyUnwrapped)),
  ]
  private static let value = [
    Field("from-node", .text("local")), Field("flags", .list(["balanced", "masqueraded"])),
    Field("takes-flows", .flag(true)),
  ]

  @Test(
    "a word means a field of the key, NAME=WORD any field, an address what it lies in",
    arguments: [
      ("10.0.0.10", true), ("10.0.0.1", false), ("10.0.0.0/24", true), ("10.0.1.0/24", false), ("80", true),
      ("8", false), ("tcp", true), ("192.0.2.7", true), ("192.0.2.0/25", true), ("192.0.3.7", false), ("local", false),
      ("from-node=local", true), ("from-node=loc", false), ("flags=balanced", true), ("flags=bal", false),
      ("takes-flows=yes", true), ("port=80", true), ("port=10.0.0.10", false), ("address=10.0.0.0/8", true),
      ("nothing=80", false),
    ])
  func filters(argument: String, passes: Bool) throws {
    let filter = try #require(MapFilter(argument: argument))
    #expect(filter.passes(key: Self.key, value: Self.value) == passes)
  }

  @Test("fields as JSON have the names and types of every other answer")
  func json() {
    #expect(
      Self.value.json == ["fromNode": "local", "flags": ["balanced", "masqueraded"], "takesFlows": true])
    #expect(Self.key.json["port"] == 80)
    #expect(Field("socket", .number(.max)).json == "18446744073709551615")
  }

  @Test("without pins, or in a folder that is none, the program says what is missing and ends with 1")
  func noPins() throws {
    for arguments in [["map"], ["map", "list"], ["map", "get", "flows"]] {
      let none = try Program(arguments + ["--bpffs", "/nonexistent/sluice"]).finish()
      #expect(none.status == 1 && none.output == "")
      #expect(none.notes.contains("find pinned maps in /nonexistent/sluice"), "\(none.notes)")
      #expect(try Program(arguments + ["--bpffs", "/tmp"]).finish().status == 1)
    }
    #expect(try Program(["map", "get"]).finish().status == 2)
    #expect(try Program(["conntrack", "list", "--proto", "tcpp"]).finish().status == 2)
    #expect(try Program(["conntrack", "list", "--address", "10.0.0"]).finish().status == 2)
  }

  @Test("service diff without agent and pins is an agent that cannot be reached")
  func diffWithoutAnything() throws {
    let outcome = try Program(
      ["service", "diff", "--socket", "/nonexistent/agent.sock", "--bpffs", "/nonexistent/sluice"]
    ).finish()
    #expect(outcome.status == 3 && outcome.output == "")
  }
}
