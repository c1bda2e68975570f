import ArgumentParser
import DataplaneModel
import Testing

@testable import dpctl

@Suite("Arguments of dpctl monitor")
struct MonitorCommandTests {
  private func parse(_ arguments: String...) throws -> MonitorCommand {
    try #require(try Dpctl.parseAsRoot(["monitor"] + arguments) as? MonitorCommand)
  }

  private func query(_ arguments: String...) throws -> [String] {
    let command = try #require(try Dpctl.parseAsRoot(["monitor"] + arguments) as? MonitorCommand)
    return try command.parameters().compactMap { key, value in value.map { "\(key)=\($0)" } }
  }

  @Test("it follows from now on, unless the past is asked for")
  func following() throws {
    #expect(try query() == ["last=0", "follow=true"])
    #expect(try query("--last", "20") == ["last=20", "follow=false"])
    #expect(try query("--last", "20", "-f") == ["last=20", "follow=true"])
    #expect(try query("--follow") == ["last=0", "follow=true"])
    #expect(try query("--since", "5m") == ["last=1000000", "follow=true", "since=300"])
    #expect(try query("--since", "5m", "--last", "3") == ["last=3", "follow=false", "since=300"])
  }

  @Test("filters are the agent's")
  func filters() throws {
    #expect(
      try query(
        "--type", "drop,audit", "--reason", "policy-denied,forged-source", "--from-pod", "shop/cart", "--to-pod",
        "other/db", "--pod", "shop/x", "-n", "shop")
        == [
          "last=0", "follow=true", "type=drop,audit", "reason=policy-denied,forged-source", "from=shop/cart",
          "to=other/db", "pod=shop/x", "namespace=shop",
        ])
    #expect(try query("-n", "shop", "-A") == ["last=0", "follow=true"])
    #expect(try query("--verdict", "deny") == ["last=0", "follow=true", "type=drop", "reason=policy-denied"])
    #expect(try query("--verdict", "audit") == ["last=0", "follow=true", "type=audit"])
    for reason in DropReason.allCases {
      #expect(try query("--reason", reason.rawValue).last == "reason=\(reason.rawValue)")
    }
  }

  @Test("a pod without a namespace is in the one that is asked for")
  func defaultNamespace() throws {
    #expect(try query("--pod", "x").last == "pod=default/x")
    #expect(try query("--from-pod", "x", "-n", "shop") == ["last=0", "follow=true", "from=shop/x", "namespace=shop"])
  }

  @Test("an end may be an address")
  func addresses() throws {
    #expect(try query("--pod", "10.0.0.1").last == "pod=10.0.0.1")
    #expect(try query("--from-pod", "FD00:0::1").last == "from=fd00::1")
  }

  @Test("spans of time", arguments: [("90", 90), ("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86400), ("0", 0)])
  func ages(text: String, seconds: Int) { #expect(Age(argument: text)?.seconds == seconds) }

  @Test(
    "what is no span of time", arguments: ["", "m", "-5m", "5 m", "5w", "1.5h", "٣", "9223372036854775807d", "5mm"])
  func notAges(text: String) { #expect(Age(argument: text) == nil) }

  @Test(
    "wrong usage is refused with a reason",
    arguments: [
      (["--type", "bogus"], "'bogus' is invalid"), (["--type", "drop,"], "is invalid"),
      (["--reason", "bad-luck"], "'bad-luck' is invalid"),
      (["--verdict", "deny", "--type", "drop"], "leave --type and --reason out"),
      (["--verdict", "deny", "--reason", "forged-source"], "leave --type and --reason out"),
      (["--pod", "a/b/c"], "--pod 'a/b/c': write NAMESPACE/NAME"), (["--from-pod", "/x"], "--from-pod '/x'"),
      (["--to-pod", ""], "--to-pod ''"), (["--last=-1"], "--last -1"), (["--since", "5x"], "'5x' is invalid"),
      (["-o", "yaml"], "-o yaml"), (["-o", "name"], "-o name"), (["-o", "xml"], "'xml' is invalid"),
    ])
  func refused(arguments: [String], reason: String) {
    #expect {
      _ = try Dpctl.parseAsRoot(["monitor"] + arguments)
    } throws: { error in
      Dpctl.exitCode(for: error) == .validationFailure && Dpctl.fullMessage(for: error).contains(reason)
    }
  }

  @Test("completions name every value that works")
  func completions() {
    let script = Dpctl.completionScript(for: .bash)
    for shell in [CompletionShell.zsh, .fish] {
      #expect(Dpctl.completionScript(for: shell).contains("forged-advertisement"))
    }
    for reason in DropReason.allCases { #expect(script.contains(reason.rawValue)) }
    for type in EventType.allCases { #expect(script.contains(type.rawValue)) }
    for word in ["explain", "monitor", "policy", "identity", "always", "IPv6"] { #expect(script.contains(word)) }
  }
}
