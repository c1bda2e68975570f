import Glibc
import LocalAPI
import Testing

@testable import dpctl

@Suite("The built dpctl")
struct ProgramTests {
  private let flow = ["explain", "shop/cart-7d9", "shop/db-0:5432"]

  private func events() throws -> [String] {
    [
      try Canned.event().serialized(), #"{"type":"lost","count":12,"lost":34}"#,
      try Canned.event(["type": "audit", "lost": 34]).serialized(),
    ]
  }

  // MARK: explain

  @Test("explain: the status says whether the flow is allowed")
  func explainStatus() throws {
    for (answer, status) in [(Canned.direct, CInt(1)), (Canned.service, 1), (Canned.rejected, 1)] {
      let agent = try FakeAgent(.json(try Canned.json(answer)))
      #expect(try Program.run(flow, agent).status == status)
      #expect(
        agent.targets == ["/v1/explain?source=shop%2Fcart-7d9&destination=shop%2Fdb-0&protocol=tcp&port=5432"])
    }
    let allowed = try FakeAgent(.json(["verdict": "allowed", "paths": []]))
    let outcome = try Program.run(flow, allowed)
    #expect(outcome.status == 0)
    #expect(outcome.output.hasSuffix("verdict ALLOWED\n"))
    #expect(outcome.notes == "")
  }

  @Test("explain: a kernel that differs is told on stderr in every format")
  func explainDisagreement() throws {
    let answer = try Canned.json(Canned.service)
    let agent = try FakeAgent(.json(answer))
    for format in ["table", "wide", "json", "jsonl", "yaml"] {
      let outcome = try Program.run(flow + ["-o", format], agent)
      #expect(outcome.status == 1)
      #expect(outcome.notes.contains("the kernel does not do what the agent believes (1 look-up differs)"))
      if format.hasPrefix("json") { #expect(outcome.json == answer) }
    }
  }

  @Test("explain: an unknown name is usage, an agent without an answer is not a denial")
  func explainFailures() throws {
    let unknown = try Program.run(flow, try FakeAgent(.failure(404, #"{"error":"pod shop/cart-7d9: unknown"}"#)))
    #expect(unknown.status == 2)
    #expect(unknown.notes == "dpctl: pod shop/cart-7d9: unknown\n")
    let older = try Program.run(flow, try FakeAgent(.failure(404, "")))
    #expect(older.status == 2)
    #expect(older.notes.contains("another version"))
    #expect(try Program.run(flow, try FakeAgent(.failure(503, #"{"error":"not synced"}"#))).status == 3)
    #expect(try Program.run(flow, try FakeAgent(.broken([]))).status == 3)
    #expect(try Program.run(flow, try FakeAgent(.lines(["no JSON"]))).status == 3)
    #expect(try Program.run(flow + ["--timeout", "1"], try FakeAgent(.silence)).status == 124)
    #expect(try Program(flow + ["--socket", "/nonexistent/agent.sock"]).finish().status == 3)
    let usage = try Program(["explain", "a", "b"]).finish()
    #expect(usage.status == 2)
    #expect(usage.output == "")
  }

  // MARK: monitor

  @Test("monitor --last prints lines, tells losses on stderr, and ends")
  func monitorPast() throws {
    let agent = try FakeAgent(.lines(try events()))
    let outcome = try Program.run(["monitor", "--last", "2"], agent)
    #expect(outcome.status == 0)
    #expect(
      outcome.output.split(separator: "\n").map { $0.prefix(18) } == ["12:04:01.221 DROP ", "12:04:01.221 AUDIT"])
    #expect(outcome.notes == "... 12 events lost (34 in all)\n")
    #expect(agent.targets == ["/v1/monitor?last=2&follow=false"])
  }

  @Test("monitor as JSON gives the agent's events, losses too")
  func monitorJSON() throws {
    let lines = try events()
    let agent = try FakeAgent(.lines(lines))
    let outcome = try Program.run(["monitor", "--last", "2", "-o", "jsonl"], agent)
    #expect(outcome.output.split(separator: "\n").map(String.init) == lines)
    #expect(outcome.notes == "... 12 events lost (34 in all)\n")
    let pretty = try Program.run(["monitor", "--last", "2", "-o", "json"], agent)
    #expect(pretty.output == (try lines.map { try Canned.json($0).serialized(pretty: true) + "\n" }.joined()))
  }

  @Test("monitor skips what is no event, with a word about it")
  func monitorNonsense() throws {
    let lines = ["nonsense", try Canned.event().serialized()]
    let outcome = try Program.run(["monitor", "--last", "2"], try FakeAgent(.lines(lines)))
    #expect(outcome.status == 0)
    #expect(outcome.output.split(separator: "\n").count == 1)
    #expect(outcome.notes.hasPrefix("dpctl: an event cannot be read: byte 0"))
  }

  @Test("monitor ends with 3 when the agent goes, in order or not, and when there is none")
  func monitorWithoutAgent() throws {
    for agent in [try FakeAgent(.lines(try events())), try FakeAgent(.broken(try events()))] {
      let outcome = try Program.run(["monitor"], agent)
      #expect(outcome.status == 3)
      #expect(outcome.output.split(separator: "\n").count == 2)
      #expect(outcome.notes.contains("dpctl: the agent has gone"))
    }
    #expect(try Program(["monitor", "--socket", "/nonexistent/agent.sock"]).finish().status == 3)
    #expect(try Program.run(["monitor", "--last", "1"], try FakeAgent(.broken(try events()))).status == 3)
    #expect(try Program.run(["monitor"], try FakeAgent(.failure(400, #"{"error":"since: no number"}"#))).status == 2)
  }

  @Test("Ctrl-C ends monitor with 0, with every line written")
  func interrupted() throws {
    let agent = try FakeAgent(.open(try events()))
    let program = try Program(["monitor", "-f", "--socket", agent.path])
    #expect(program.line().contains("DROP"))
    #expect(program.line().contains("AUDIT"))
    agent.say(try Canned.event().serialized())
    #expect(program.line().contains("DROP"))
    program.signal(SIGINT)
    let outcome = program.finish()
    #expect(outcome.status == 0)
    #expect(outcome.output == "")
    #expect(outcome.notes == "... 12 events lost (34 in all)\n")
  }

  @Test("a reader that goes ends monitor, quietly, also while nothing happens", arguments: [false, true])
  func readerGoes(withMore: Bool) throws {
    let agent = try FakeAgent(.open(try [Canned.event().serialized()]))
    let program = try Program(["monitor", "--socket", agent.path])
    #expect(program.line().contains("DROP"))
    program.closeOutput()
    if withMore { agent.say(try Canned.event().serialized()) }
    let outcome = program.finish()
    #expect(outcome.status == 0)
    #expect(outcome.notes == "")
  }

  // MARK: policy and identity

  @Test("policy diff: nothing and 0 when equal, else a table and 1")
  func differences() throws {
    let equal = try FakeAgent(.json(["apiVersion": "sluice.dev/v1", "differences": []]))
    let same = try Program.run(["policy", "diff"], equal)
    #expect(same.status == 0)
    #expect(same.output == "")
    let agent = try FakeAgent(.json(try Canned.json(Canned.differences)))
    let different = try Program.run(["np", "diff"], agent)
    #expect(different.status == 1)
    #expect(different.output.split(separator: "\n").count == 3)
    #expect(try Program.run(["policy", "diff", "--no-headers"], agent).output.split(separator: "\n").count == 2)
    #expect(try Program.run(["policy", "diff", "-o", "json"], agent).json == (try Canned.json(Canned.differences)))
    #expect(try Program.run(["policy", "diff", "-o", "jsonl"], agent).output.split(separator: "\n").count == 2)
    #expect(try Program.run(["policy", "diff"], try FakeAgent(.failure(503, "{}"))).status == 3)
  }

  @Test("policy: a bare noun lists; namespaces and names are asked for")
  func policies() throws {
    let agent = try FakeAgent(.json(try Canned.json(Canned.policies)))
    #expect(try Program.run(["policy"], agent).output.split(separator: "\n").count == 4)
    #expect(
      try Program.run(["np", "list", "-n", "shop", "-o", "name"], agent).output == """
        shop/allow-egress
        shop/watch-db
        other/new

        """)
    #expect(try Program.run(["policy", "get", "shop/allow-egress", "-o", "json"], agent).json["items"] != nil)
    #expect(try Program.run(["policy", "get", "x", "-n", "team"], agent).output.hasPrefix("Policy      shop/allow-"))
    #expect(
      agent.targets == [
        "/v1/policies", "/v1/policies?namespace=shop", "/v1/policies?namespace=shop&name=allow-egress",
        "/v1/policies?namespace=team&name=x",
      ])
    let none = try Program.run(["policy", "get", "shop/x"], try FakeAgent(.json(["items": []])))
    #expect(none.status == 1)
    #expect(none.notes == "dpctl: there is no policy shop/x\n")
    for name in ["a/b/c", "/x", ""] { #expect(try Program(["policy", "get", name]).finish().status == 2) }
  }

  @Test("identity list in every format")
  func identities() throws {
    let agent = try FakeAgent(.json(try Canned.json(Canned.identities)))
    #expect(try Program.run(["id"], agent).output.split(separator: "\n").count == 7)
    #expect(try Program.run(["identity", "list", "-n", "shop", "-o", "name"], agent).output == "16\n17\n")
    #expect(try Program.run(["id", "list", "-o", "json"], agent).json == (try Canned.json(Canned.identities)))
    #expect(
      try Program.run(["id", "-o", "yaml", "-n", "other"], agent).output == """
        apiVersion: "sluice.dev/v1"
        items:
          - id: 18
            family: "IPv4"
            kind: "pod"
            namespace: "other"
            labels: []
            addresses: 1
            pairs: 0

        """)
  }
}
