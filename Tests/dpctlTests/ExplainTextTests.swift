import ArgumentParser
import LocalAPI
import Testing

@testable import dpctl

@Suite("dpctl explain")
struct ExplainTextTests {
  private let plain = Terminal(isColored: false)

  @Test("a denied flow: both ends, both directions, who denies and what is nearest")
  func direct() throws {
    let text = ExplainText(try Canned.json(Canned.direct))
    #expect(
      text.text(plain, wide: false) == """
        source       shop/cart-7d9  10.1.2.3  pod, identity 16, app=cart
        destination  shop/db-0  10.1.2.4  pod, identity 18, app=db
        egress  ALLOW  shop/allow-egress rule 0
        ingress DENY   isolated by shop/deny-db; no rule matches app=cart; nearest: rule 1 needs role=api
        verdict DENIED
        """)
    #expect(!text.isAllowed)
    #expect(text.disagreements == 0)
  }

  @Test("wide: where the ends are, which policies took part, and the kernel's answer")
  func wide() throws {
    #expect(
      ExplainText(try Canned.json(Canned.direct)).text(plain, wide: true) == """
        source       shop/cart-7d9  10.1.2.3  pod, identity 16, app=cart, on this node
        destination  shop/db-0  10.1.2.4  pod, identity 18, app=db, on this node
        egress  ALLOW  shop/allow-egress rule 0
                policies: shop/allow-egress
                kernel: ALLOW shop/allow-egress rule 0
        ingress DENY   isolated by shop/deny-db; no rule matches app=cart; nearest: rule 1 needs role=api
                policies: shop/deny-db
                kernel: DENY isolated by shop/deny-db
        verdict DENIED
        """)
  }

  @Test("a Service: each backend's own answer, and the kernel's where it differs")
  func service() throws {
    let text = ExplainText(try Canned.json(Canned.service))
    #expect(
      text.text(plain, wide: false) == """
        source       203.0.113.9  world, identity 22
        destination  shop/api  10.96.0.10  service
        service      shop/api  10.96.0.10:80/tcp  translated to one of 5 backends

        backend 10.244.1.5:8080 (shop/api-1)
        egress  -      203.0.113.9 is no pod of this node
        ingress ALLOW  shop/api rule 2
                !! THE KERNEL SAYS OTHERWISE: DENY isolated by shop/api

        backend [fd00::5]:8080
        egress  -
        ingress AUDIT  would be denied by shop/watch

        ... and 3 more backends, not shown

        verdict MIXED: 1 of the 2 backends shown allowed
        """)
    #expect(!text.isAllowed)
    #expect(text.disagreements == 1)
  }

  @Test("a Service without endpoints: why it rejects")
  func rejected() throws {
    let text = ExplainText(try Canned.json(Canned.rejected))
    #expect(
      text.text(plain, wide: false) == """
        source       host  192.168.0.1  host
        destination  shop/none  10.96.0.11  service
        service      shop/none  10.96.0.11:80/tcp  rejected: no-endpoint (the Service has no endpoint anywhere)

        verdict REJECTED
        """)
    #expect(!text.isAllowed)
  }

  @Test("every verdict has its word, which the agent's text need not repeat")
  func words() {
    func line(_ verdict: String, _ text: String) -> String {
      let decision: JSONValue = ["verdict": .string(verdict), "text": .string(text)]
      let answer: JSONValue = ["paths": [["egress": decision, "ingress": nil]]]
      return String(ExplainText(answer).text(plain, wide: false).split(separator: "\n")[2])
    }
    #expect(line("exempt", "ALLOW a pod always reaches itself") == "egress  ALLOW  a pod always reaches itself")
    #expect(line("unrestricted", "no policy") == "egress  ALLOW  no policy")
    #expect(line("dropped", "DROP no-verdict: why") == "egress  DROP   no-verdict: why")
    #expect(line("dropped", "unknown attribution 3") == "egress  DROP   unknown attribution 3")
    #expect(line("deny", "") == "egress  DENY")
    #expect(line("audit-deny", "by x") == "egress  AUDIT  by x")
    #expect(line("not-local", "fd00::1 is no pod of this node") == "egress  -      fd00::1 is no pod of this node")
    #expect(line("brand-new", "REDIRECTED to x") == "egress  REDIRECTED to x")
  }

  @Test("colours mark verdicts")
  func colors() throws {
    let red = "\u{1b}[1;31m"
    let lines = ExplainText(try Canned.json(Canned.direct)).text(Terminal(isColored: true), wide: false)
      .split(separator: "\n")
    #expect(lines[2] == "egress  \u{1b}[1;32mALLOW\u{1b}[0m  shop/allow-egress rule 0")
    #expect(lines[3].hasPrefix("ingress \(red)DENY\u{1b}[0m   isolated"))
    #expect(lines[4] == "verdict \(red)DENIED\u{1b}[0m")
    #expect(
      ExplainText(try Canned.json(Canned.service)).text(Terminal(isColored: true), wide: false)
        .contains("\(red)!! THE KERNEL SAYS OTHERWISE:\u{1b}[0m"))
  }

  @Test("what another node also judges is allowed by this node only")
  func elsewhere() {
    func last(source: JSONValue, destination: JSONValue, path: JSONValue) -> String {
      let answer: JSONValue = [
        "source": source, "destination": destination, "verdict": "allowed", "paths": [path],
      ]
      return String(ExplainText(answer).text(plain, wide: false).split(separator: "\n").last ?? "")
    }
    let (here, there): (JSONValue, JSONValue) = (["kind": "pod", "local": true], ["kind": "pod", "local": false])
    let world: JSONValue = ["kind": "world", "local": false]
    let (allow, notLocal): (JSONValue, JSONValue) = (["verdict": "allow"], ["verdict": "not-local"])
    let leaves: JSONValue = ["egress": allow, "ingress": notLocal]
    let comes: JSONValue = ["egress": notLocal, "ingress": allow]
    #expect(last(source: here, destination: here, path: ["egress": allow, "ingress": allow]) == "verdict ALLOWED")
    #expect(last(source: here, destination: there, path: leaves) == "verdict ALLOWED by this node")
    #expect(last(source: here, destination: world, path: leaves) == "verdict ALLOWED")
    #expect(last(source: there, destination: here, path: comes) == "verdict ALLOWED by this node")
    #expect(last(source: world, destination: here, path: comes) == "verdict ALLOWED")
    let backend: JSONValue = ["egress": allow, "ingress": notLocal, "backendText": "shop/api-1"]
    #expect(last(source: here, destination: ["kind": "service"], path: backend) == "verdict ALLOWED by this node")
  }

  @Test("allowed is what the agent says so and the kernel does not contradict")
  func allowed() throws {
    func answer(_ verdict: String, agrees: JSONValue) -> ExplainText {
      ExplainText([
        "verdict": .string(verdict),
        "paths": [["egress": ["kernel": nil], "ingress": ["kernel": ["agrees": agrees, "text": ""]]]],
      ])
    }
    #expect(answer("allowed", agrees: true).isAllowed)
    #expect(!answer("allowed", agrees: false).isAllowed)
    for verdict in ["denied", "mixed", "rejected", "dropped", "", "new"] {
      #expect(!answer(verdict, agrees: true).isAllowed)
    }
    #expect(!ExplainText(.null).isAllowed)
  }

  @Test("no text from elsewhere steers the terminal")
  func hostile() throws {
    let evil: JSONValue = "A\u{1b}[2J\nB"
    let end: JSONValue = ["text": evil, "address": evil, "kind": evil, "labels": evil]
    let decision: JSONValue = [
      "applies": true, "verdict": evil, "text": evil, "policies": [evil], "rule": ["policy": evil, "index": evil],
      "nearest": ["text": evil], "kernel": ["text": evil, "agrees": false],
    ]
    let answer: JSONValue = [
      "source": end, "destination": end, "verdict": evil,
      "service": ["text": evil, "frontend": evil, "outcome": evil, "reason": evil],
      "paths": [["backend": evil, "backendText": "x\u{9b}", "egress": decision, "ingress": decision]],
    ]
    for wide in [false, true] {
      let text = ExplainText(answer).text(plain, wide: wide)
      #expect(text.unicodeScalars.allSatisfy { $0 == "\n" || (0x20...0x7e).contains($0.value) })
      #expect(!text.contains("\nB"))
    }
  }

  @Test("arguments: usage is checked before the agent is asked")
  func arguments() throws {
    let command = try #require(
      try Dpctl.parseAsRoot(["explain", "cart", "svc/shop/api:80", "-n", "shop", "--family", "IPv6"]) as? ExplainCommand
    )
    #expect(command.family == .v6)
    for arguments in [
      ["a", "b"], ["a"], ["a", "b:1", "c"], ["a", "b:1", "-o", "name"], ["a", "b:1", "--family", "4"],
    ] {
      #expect {
        _ = try Dpctl.parseAsRoot(["explain"] + arguments)
      } throws: {
        Dpctl.exitCode(for: $0) == .validationFailure
      }
    }
  }
}

@Suite("Colours")
struct TerminalTests {
  @Test("are forced or left out as told; text loses only what steers")
  func colors() {
    #expect(Terminal(.always).paint("x", .red) == "\u{1b}[1;31mx\u{1b}[0m")
    #expect(Terminal(.never).paint("x", .red) == "x")
    #expect(Terminal(.always).paint("x", nil) == "x")
    // No terminal: a closed descriptor is none.
    #expect(!Terminal(.auto, descriptor: -1).isColored)
    #expect(Terminal.printable("häßlich 日本 → ok") == "häßlich 日本 → ok")
    #expect(Terminal.printable("a\tb\u{85}c\u{2066}d") == "a?b?c?d")
  }
}
