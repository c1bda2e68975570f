import Glibc
import KubernetesObjects
import Testing

@testable import ClusterSource

@Suite("Reading YAML and JSON") struct YAMLTests {
  private func documents(_ text: String) throws -> [ManifestNode] {
    var result: [ManifestNode] = []
    var splitter = DocumentSplitter()
    func visit(_ piece: DocumentSplitter.Piece) throws {
      result += try YAMLReader.documents(in: piece.bytes, firstLine: piece.firstLine)
    }
    try Array(text.utf8).withUnsafeBytes { try splitter.append($0, visit) }
    try splitter.finish(visit)
    return result
  }

  private func problem(_ text: String) throws -> String {
    do { _ = try documents(text) } catch let problem as YAMLProblem { return "\(problem.line): \(problem.message)" }
    return "none"
  }

  /// Where the pieces of a text begin, and what they hold, however it is cut into chunks.
  private func pieces(_ text: String, chunk: Int = 1 << 20) -> [String] {
    var result: [String] = []
    var splitter = DocumentSplitter()
    let bytes = Array(text.utf8)
    func visit(_ piece: DocumentSplitter.Piece) {
      result.append("\(piece.firstLine)|\(String(decoding: piece.bytes, as: UTF8.self))")
    }
    for start in stride(from: 0, to: bytes.count, by: chunk) {
      bytes[start..<min(start + chunk, bytes.count)].withUnsafeBytes { splitter.append($0, visit) }
    }
    splitter.finish(visit)
    return result
  }

  @Test("files are cut at document lines, and line numbers go on", arguments: [1, 2, 3, 7, 1 << 20])
  func splitting(chunk: Int) {
    #expect(pieces("a: 1\n---\nb: 2\n--- # c\nd: 3", chunk: chunk) == ["1|a: 1\n", "2|---\nb: 2\n", "4|--- # c\nd: 3"])
    #expect(pieces("# note\n%YAML 1.1\n---\na: 1\n", chunk: chunk) == ["1|# note\n%YAML 1.1\n---\na: 1\n"])
    #expect(pieces("a: 1\n...\n%YAML 1.1\n---\nb: 2\n", chunk: chunk) == ["1|a: 1\n...", "3|%YAML 1.1\n---\nb: 2\n"])
    #expect(pieces("a: ----\n---b\n ---\n", chunk: chunk) == ["1|a: ----\n---b\n ---\n"])
    #expect(pieces("\u{feff}a: 1\r\n---\r\nb: 2\r\n", chunk: chunk) == ["1|a: 1\r\n", "2|---\r\nb: 2\r\n"])
    #expect(pieces("---\n---\n\n# nothing\n---\n", chunk: chunk) == [])
    #expect(pieces("--- {a: 1}\n--- {b: 2}\n", chunk: chunk) == ["1|--- {a: 1}\n", "2|--- {b: 2}\n"])
    #expect(pieces("", chunk: chunk) == [])
  }

  @Test("a scalar keeps its text, whether it was quoted, and its line")
  func scalars() throws {
    let text = "a: y\nb: 'y'\nc: 0x10\nd: 1e3\ne: ~\nf:\ng: \"null\"\nh: |\n  x\ni: !!str 5\nj: null\nn: off\n8: x\n"
    let expected: [(String, ManifestNode)] = [
      ("a", .scalar("y", isQuoted: false, line: 1)), ("b", .scalar("y", isQuoted: true, line: 2)),
      ("c", .scalar("0x10", isQuoted: false, line: 3)), ("d", .scalar("1e3", isQuoted: false, line: 4)),
      ("e", .null(line: 5)), ("f", .null(line: 6)), ("g", .scalar("null", isQuoted: true, line: 7)),
      ("h", .scalar("x\n", isQuoted: true, line: 8)), ("i", .scalar("5", isQuoted: true, line: 10)),
      ("j", .null(line: 11)), ("n", .scalar("off", isQuoted: false, line: 12)),
      ("8", .scalar("x", isQuoted: false, line: 13)),
    ]
    #expect(try documents(text) == [.mapping(expected.map { ManifestNode.Entry($0.0, $0.1) }, line: 1)])
  }

  @Test("anchors, aliases and merge keys work; what is written wins over what is merged")
  func aliases() throws {
    let document = try #require(try documents("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}\nc: *x\n").first)
    #expect(document["b"]?["k"] == .scalar("1", isQuoted: false, line: 1))
    #expect(document["b"]?["l"] == .scalar("3", isQuoted: false, line: 2))
    #expect(document["c"]?["l"] == .scalar("2", isQuoted: false, line: 1))
  }

  @Test("what is no YAML is named with its line in the file")
  func problems() throws {
    #expect(try problem("a: 1\n---\nb: c: d\n") == "3: is not YAML: mapping values are not allowed in this context")
    #expect(try problem("a: 1\na: 2\n") == "1: is not YAML: the key \"a\" stands twice")
    #expect(try problem("\n\na: *b\n") == "3: is not YAML: found undefined alias")
    #expect(
      try problem("a: 1\n---\nb:\n\t- c\n")
        == "4: is not YAML: while scanning for the next token, line 4: found character that cannot start any token")
    #expect(try problem("a: 1\nb: \"\u{1}\"\n") == "2: is not YAML: control characters are not allowed")
    #expect(try problem("[1]: 2\n") == "1: a key must be text")
    #expect(try problem("a: [\n").hasPrefix("2: is not YAML: while parsing a flow node"))
  }

  @Test("bytes that are not UTF-8 are named with their line")
  func invalidText() {
    let bytes: [UInt8] = Array("a: 1\nb: ".utf8) + [0xff, 0xfe]
    #expect(throws: YAMLProblem(line: 12, message: "is not UTF-8 text")) {
      _ = try YAMLReader.documents(in: bytes[...], firstLine: 11)
    }
  }

  @Test("a small file that means an enormous tree is refused at once")
  func explosion() throws {
    var text = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in 1...20 {
      text += "l\(level): &l\(level) [" + Array(repeating: "*l\(level - 1)", count: 10).joined(separator: ", ") + "]\n"
    }
    let start = ContinuousClock.now
    #expect(try problem(text).contains("its aliases expand to too many values"))
    for key in ["? *l20\n: x\n", "*l20 : x\n", "{*l20 : x}: y\n", "[*l20]: x\n", "? [*l20]\n: x\n"] {
      #expect(try problem(text + key).contains("is not accepted beside aliases"), "\(key)")
    }
    #expect(ContinuousClock.now - start < .seconds(20))
  }

  @Test("deep nesting is refused, not followed into the end of the stack", arguments: ["[", "{a: ", "- "])
  func nesting(opening: String) async throws {
    let text = String(repeating: opening, count: 100_000)
    let folder = try TemporaryFolder()
    folder.write("a.yaml", text)
    let watch = FolderWatch(folder.path)
    let seen = try await watch.until("the problem") { $0.isSynced && $0.problems["a.yaml"] != nil }
    #expect(seen.problems["a.yaml"]?.count == 1)
  }

  @Test("a document that no one can mean is refused before it fills the memory")
  func tooLarge() async throws {
    let folder = try TemporaryFolder()
    let item = "- {apiVersion: v1, kind: Node, metadata: {name: n}}\n"
    folder.write("a.yaml", "apiVersion: v1\nkind: List\nitems:\n" + String(repeating: item, count: 200_000))
    let watch = FolderWatch(folder.path)
    let seen = try await watch.until("the problem") { $0.isSynced && $0.problems["a.yaml"] != nil }
    #expect(
      seen.problems["a.yaml"] == [
        "a.yaml:1: is a document of more than 8 MiB: cut it with lines of \"---\""
      ])
  }

  @Test("JSON is read as it is, tabs, escapes and lists of kubectl included")
  func json() throws {
    let text = """
      {
      \t"apiVersion": "v1", "kind": "List",
      \t"items": [
      \t\t{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "a", "labels": {"x": "\\u0031"}},
      \t\t "spec": {"ports": [{"port": 80}], "clusterIP": "None"}},
      \t\t{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "b"}, "spec": {"ports": [{"port": "80"}]}}
      \t]
      }
      """
    let document = try #require(try documents(text).first)
    guard case .list(let items) = decodeObject(document, file: "f.json"), items.count == 2,
      case .object(.service(let service), let problems, let line) = items[0], case .bad(let problem, _) = items[1]
    else {
      Issue.record("\(decodeObject(document, file: "f.json"))")
      return
    }
    #expect(service.isHeadless && problems.isEmpty && line == 4)
    #expect(
      problem.description == "f.json:6: Service default/b: spec.ports[0].port: must be a whole number, is \"80\"")
  }

  @Test("YAML's guesses about words and numbers do not reach the objects")
  func traps() throws {
    let text = """
      apiVersion: v1
      kind: Namespace
      metadata:
        name: 1e3
        labels:
          y: n
          on: off
          empty:
          version: "1.10"
          bad: 1.10
      """
    guard let document = try documents(text).first, case .bad(let problem, _) = decodeObject(document, file: "t.yaml")
    else {
      Issue.record("good")
      return
    }
    #expect(
      problem.description
        == "t.yaml:10: Namespace 1e3: metadata.labels[bad]: must be text, is the number 1.10 (write it in quotes: \"1.10\")"
    )
    let good = try #require(try documents(text.replacingLastLine(with: "    good: x")).first)
    guard case .object(.namespace(let namespace), _, _) = decodeObject(good, file: "t.yaml") else {
      Issue.record("bad")
      return
    }
    #expect(
      namespace.labels.description == "empty=,good=x,kubernetes.io/metadata.name=1e3,on=off,version=1.10,y=n")
  }

  @Test("any change of the bytes gives documents or a problem; never a crash")
  func fuzz() throws {
    let seed = UInt64.random(in: 0 ... .max)
    print("YAML fuzz seed: \(seed)")
    var state = seed
    func random(_ bound: Int) -> Int {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Int(state >> 33) % bound
    }
    let base = Array((service("a") + "--- {a: &x [1, 'b', \"c\\n\"], d: *x, <<: {e: ~}}\n# z\n" + service("b")).utf8)
    let inserts = Array("{}[]:-?&*!|>'\"%@`#,\n \t\u{0}".utf8) + [0x80, 0xc3, 0xff, 0xfe]
    var read = 0
    for _ in 0..<3000 {
      var bytes = base
      for _ in 0...random(4) {
        let index = random(bytes.count)
        switch random(3) {
        case 0: bytes.remove(at: index)
        case 1: bytes.insert(inserts[random(inserts.count)], at: index)
        default: bytes[index] = inserts[random(inserts.count)]
        }
      }
      var splitter = DocumentSplitter()
      func visit(_ piece: DocumentSplitter.Piece) {
        do throws(YAMLProblem) {
          for document in try YAMLReader.documents(in: piece.bytes, firstLine: piece.firstLine) {
            _ = decodeObject(document, file: "f")
            read += 1
          }
        } catch {
          #expect((1...40).contains(error.line), "seed \(seed): \(error)")
          #expect(!error.message.contains("\n"), "seed \(seed): \(error)")
        }
      }
      bytes.withUnsafeBytes { splitter.append($0, visit) }
      splitter.finish(visit)
    }
    #expect(read > 1000)
  }
}

extension String {
  fileprivate func replacingLastLine(with line: String) -> String {
    split(separator: "\n").dropLast().joined(separator: "\n") + "\n" + line
  }
}
