import NetworkTypes
import Testing

@testable import dpctl

@Suite("Ends of a flow as they are typed")
struct ExplainTargetTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var text: String
    var name: String
    var port: Int?
    var transport: ExplainProtocol?
    var testDescription: String { text }
  }

  @Test(
    "are read",
    arguments: [
      Case(text: "shop/db-0:5432/tcp", name: "shop/db-0", port: 5432, transport: .tcp),
      Case(text: "shop/db-0:5432", name: "shop/db-0", port: 5432),
      Case(text: "shop/db-0:53/UDP", name: "shop/db-0", port: 53, transport: .udp),
      Case(text: "shop/db-0", name: "shop/db-0"),
      Case(text: "db-0", name: "apps/db-0"),
      Case(text: "db-0:1/sctp", name: "apps/db-0", port: 1, transport: .sctp),
      Case(text: "shop/db-0/icmp", name: "shop/db-0", transport: .icmp),
      Case(text: "shop/db.0.x", name: "shop/db.0.x"),
      // A pod may be called like a protocol, a namespace like a keyword.
      Case(text: "shop/tcp", name: "shop/tcp"),
      Case(text: "svc/api:80", name: "svc/api", port: 80),
      Case(text: "world/x:80", name: "world/x", port: 80),
      Case(text: "svc/shop/api:80", name: "svc/shop/api", port: 80),
      Case(text: "svc/shop/api:80/udp", name: "svc/shop/api", port: 80, transport: .udp),
      Case(text: "svc/shop/api", name: "svc/shop/api"),
      Case(text: "svc/shop/api/icmp", name: "svc/shop/api", transport: .icmp),
      Case(text: "10.0.0.1:80", name: "10.0.0.1", port: 80),
      Case(text: "10.0.0.1:65535/tcp", name: "10.0.0.1", port: 65535, transport: .tcp),
      Case(text: "10.0.0.1/icmp", name: "10.0.0.1", transport: .icmp),
      Case(text: "10.0.0.1", name: "10.0.0.1"),
      Case(text: "[fd00::1]:53/udp", name: "fd00::1", port: 53, transport: .udp),
      Case(text: "[FD00:0::1]:53", name: "fd00::1", port: 53),
      Case(text: "[fd00::1]", name: "fd00::1"),
      Case(text: "[fd00::1]/icmpv6", name: "fd00::1", transport: .icmp),
      Case(text: "fd00::1", name: "fd00::1"),
      Case(text: "fd00::1/icmp6", name: "fd00::1", transport: .icmp),
      Case(text: "::1", name: "::1"),
      Case(text: "world:443", name: "world", port: 443),
      Case(text: "world/icmp", name: "world", transport: .icmp),
      Case(text: "host", name: "host"),
    ])
  func read(wanted: Case) throws {
    let target = try ExplainTarget(wanted.text, defaultNamespace: "apps")
    #expect(target.name == wanted.name)
    #expect(target.port == wanted.port.flatMap { Port($0) })
    #expect(target.transport == wanted.transport)
  }

  @Test(
    "are refused with the reason",
    arguments: [
      ("", "a part is empty"), ("/", "a part is empty"), ("shop/", "a part is empty"), ("/db", "a part is empty"),
      (":80", "a part is empty"), ("shop//icmp", "a part is empty"),
      ("shop/db:", "'' is no port"), ("shop/db:http", "'http' is no port"), ("shop/db:0", "'0' is no port"),
      ("shop/db:65536", "'65536' is no port"), ("shop/db:+80", "'+80' is no port"), ("shop/db:-1", "'-1' is no port"),
      ("shop/db:٨٠", "'٨٠' is no port"), ("shop/db:99999999999999999999", "is no port"),
      ("shop/db:80/", "'' is no protocol"), ("shop/db:80/quic", "'quic' is no protocol"),
      ("shop/db:80/tcp/x", "'tcp/x' is no protocol"), ("10.0.0.0/8", "'8' is no protocol"),
      ("fd00::/64", "'64' is no protocol"), ("shop/db/x", "'x' is no protocol"), ("[fd00::1]/", "'' is no protocol"),
      ("a/b/c:80", "write NAMESPACE/NAME"), ("svc/a/b/c:80", "write NAMESPACE/NAME"),
      ("10.0.0.1/x:80", "an address has no name behind it"),
      ("Shop/db", "'Shop' is no Kubernetes name"), ("shop/d b:80", "'d b' is no Kubernetes name"),
      ("shop/d\u{1b}b", "is no Kubernetes name"), ("shop/dé", "is no Kubernetes name"),
      ("10.0.0.256:80", "no IPv4 address"), ("10.0.1", "no IPv4 address"),
      ("fd00::1:80:x", "written [fd00::1]:80"), ("fd00::g", "written [fd00::1]:80"), ("a:b:c", "written [fd00::1]:80"),
      ("::ffff:10.0.0.1", "written [fd00::1]:80"), ("[fd00::1", "the bracket is not closed"),
      ("[10.0.0.1]:80", "'10.0.0.1' is no IPv6 address"), ("[]:80", "'' is no IPv6 address"),
      ("[::ffff:10.0.0.1]:80", "is no IPv6 address"), ("[fd00::1]80", "':PORT' is expected"),
    ])
  func refused(text: String, reason: String) {
    #expect {
      try ExplainTarget(text, defaultNamespace: "apps")
    } throws: { error in
      "\(error)".hasPrefix("'\(text)': ") && "\(error)".contains(reason)
    }
  }

  @Test("no text crashes")
  func anyText() {
    let alphabet = Array("ab/:[].0189 svcworldhostfd\u{1b}é")
    var random = SystemRandomNumberGenerator()
    var accepted = 0
    for _ in 0..<20_000 {
      let count = Int.random(in: 0..<12, using: &random)
      let text = String((0..<count).map { _ in alphabet.randomElement(using: &random) ?? "a" })
      guard let target = try? ExplainTarget(text, defaultNamespace: "apps") else { continue }
      accepted += 1
      #expect(!target.name.isEmpty)
    }
    #expect(accepted > 0)
  }

  private func flow(_ source: String, _ destination: String) throws -> [String] {
    try ExplainTarget.flow(from: source, to: destination, defaultNamespace: "apps")
      .compactMap { key, value in value.map { "\(key)=\($0)" } }
  }

  @Test("both ends make a question; TCP is meant where nothing is said")
  func flows() throws {
    #expect(
      try flow("cart", "shop/db-0:5432") == [
        "source=apps/cart", "destination=shop/db-0", "protocol=tcp", "port=5432",
      ])
    #expect(
      try flow("[fd00::9]:4000", "[fd00::1]:53/udp") == [
        "source=fd00::9", "destination=fd00::1", "protocol=udp", "port=53",
      ])
    #expect(try flow("host", "shop/db-0/icmp") == ["source=host", "destination=shop/db-0", "protocol=icmp"])
    #expect(try flow("world", "world:1").prefix(2) == ["source=world", "destination=world"])
    // As dpctl monitor prints it.
    #expect(try flow("shop/cart-7d9:40122", "shop/db-0:5432").first == "source=shop/cart-7d9")
  }

  @Test(
    "questions without sense are refused",
    arguments: [
      ("a/b", "shop/db-0", "the port is missing: shop/db-0:PORT (or shop/db-0/icmp)"),
      ("a/b", "fd00::1", "the port is missing: [fd00::1]:PORT (or [fd00::1]/icmp)"),
      ("a/b", "shop/db-0/udp", "the port is missing"), ("a/b", "shop/db-0:80/icmp", "icmp has no ports"),
      ("svc/a/b", "shop/db-0:80", "a Service sends nothing"), ("a/b", "host:80", "'host' is a source"),
      ("a/b/c", "shop/db-0:80", "'c' is no protocol"), ("a/b", "", "a part is empty"),
    ])
  func senseless(source: String, destination: String, reason: String) {
    #expect {
      try flow(source, destination)
    } throws: {
      "\($0)".contains(reason)
    }
  }
}
