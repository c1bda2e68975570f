import APIServerDouble
import Glibc
import KubernetesObjects
import Testing

@testable import ClusterSource

/// Bytes that Kubernetes' own libraries have written (Corpus/generate.go), read in both forms.
@Suite("What an API server sends") struct WireCorpusTests {
  /// In pieces of every size: what has been cut must not matter.
  private static let pieces = [1, 7, 1000, Int.max]

  @Test("lists: each field that is read has the same value in protobuf and in JSON", arguments: ObjectKind.allCases)
  func lists(_ kind: ObjectKind) throws {
    for size in Self.pieces {
      var trees: [WireFormat: [ManifestNode]] = [:]
      for format in WireFormat.allCases {
        let (objects, progress) = try Corpus.list(kind, format, pieces: size)
        #expect(progress == ListProgress(resourceVersion: "9007199254740993", next: "token", remaining: 1234))
        trees[format] = objects
      }
      try expectSame(trees, kind, count: 8)
    }
  }

  @Test("watches: each field, each kind of event", arguments: ObjectKind.allCases)
  func watches(_ kind: ObjectKind) throws {
    for size in Self.pieces {
      var trees: [WireFormat: [ManifestNode]] = [:]
      for format in WireFormat.allCases {
        let frames = try Corpus.watch(kind, format, pieces: size)
        try #require(frames.count == 5)
        guard case .present(let added) = frames[0], case .present(let changed) = frames[1],
          case .gone(let last) = frames[2]
        else { throw WireProblem("\(frames)") }
        #expect(frames[3] == .bookmark(resourceVersion: "4711", isEndOfList: true))
        let status = APIStatus(code: 410, reason: "Expired", message: "too old", retryAfterSeconds: 7)
        #expect(frames[4] == .failed(status))
        trees[format] = [added, changed, last]
      }
      try expectSame(trees, kind, count: 3)
    }
  }

  private func expectSame(_ trees: [WireFormat: [ManifestNode]], _ kind: ObjectKind, count: Int) throws {
    let (fromProtobuf, fromJSON) = (try #require(trees[.protobuf]), try #require(trees[.json]))
    try #require(fromProtobuf.count == count && fromJSON.count == count)
    for (left, right) in zip(fromProtobuf, fromJSON) {
      let schema = MessageSchema.object(kind)
      #expect(Projection.of(left, schema) == Projection.of(right, schema))
    }
  }

  @Test(
    "every field of every schema occurs in the corpus with a value that is not zero", arguments: ObjectKind.allCases)
  func coverage(_ kind: ObjectKind) throws {
    var seen: Set<String> = []
    for tree in try Corpus.list(kind, .protobuf, pieces: .max).objects { Projection.paths(tree, "", &seen) }
    for case .present(let tree) in try Corpus.watch(kind, .protobuf, pieces: .max) { Projection.paths(tree, "", &seen) }
    #expect(Projection.paths(.object(kind)).subtracting(seen) == [])
  }

  @Test(
    "cut off anywhere: a list is known to be unfinished, a watch waits for the rest", arguments: ObjectKind.allCases)
  func truncated(_ kind: ObjectKind) throws {
    for format in WireFormat.allCases {
      let bytes = try Corpus.bytes("\(kind)List", format)
      // Behind the list the envelope says only what is empty.
      let end = bytes.count - (format == .protobuf ? 4 : 2)
      for count in stride(from: 0, to: end, by: max(1, end / 200)) {
        var stream = ListStream(kind, format)
        _ = try stream.append(bytes.prefix(count))
        #expect(throws: WireProblem.self, "\(format), \(count) of \(bytes.count)") { try stream.finish() }
      }
      let watch = try Corpus.bytes("\(kind)Watch", format)
      for count in stride(from: 0, to: watch.count, by: max(1, watch.count / 200)) {
        var stream = WatchStream(kind, format)
        #expect(try stream.append(watch.prefix(count)).count < 5)
      }
    }
  }

  @Test("damaged: an error or other objects, never a crash", arguments: [20_261_122, UInt64.random(in: 0 ... .max)])
  func damaged(_ seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    for kind in ObjectKind.allCases {
      for format in WireFormat.allCases {
        for name in ["List", "Watch"] {
          let whole = try Corpus.bytes("\(kind)\(name)", format)
          for _ in 0..<150 {
            let bytes = Corpus.damaged(whole, using: &random)
            do {
              if name == "List" {
                var stream = ListStream(kind, format)
                let decoder = ObjectDecoder()
                for tree in try stream.append(bytes) { _ = decoder.decode(tree, as: kind) }
                _ = try stream.finish()
              } else {
                var stream = WatchStream(kind, format)
                _ = try stream.append(bytes)
              }
            } catch {
              // What it says is tested elsewhere.
            }
          }
        }
      }
    }
  }
}

/// Files beside this one.
enum Corpus {
  static func bytes(_ name: String, _ format: WireFormat) throws -> [UInt8] {
    let folder = #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/")
    let path = "\(folder)/Corpus/\(name).\(format == .protobuf ? "pb" : "json")"
    let file = try #require(fopen(path, "r"), "\(path)")
    defer { fclose(file) }
    var buffer = [UInt8](repeating: 0, count: 1 << 20)
    let count = fread(&buffer, 1, buffer.count, file)
    return Array(buffer.prefix(count))
  }

  private static func pieces(of bytes: [UInt8], _ size: Int) -> [ArraySlice<UInt8>] {
    stride(from: 0, to: bytes.count, by: min(size, bytes.count)).map { bytes[$0...].prefix(size) }
  }

  static func list(
    _ kind: ObjectKind, _ format: WireFormat, pieces size: Int
  ) throws -> (objects: [ManifestNode], progress: ListProgress) {
    var stream = ListStream(kind, format)
    var objects: [ManifestNode] = []
    for piece in pieces(of: try bytes("\(kind)List", format), size) { objects += try stream.append(piece) }
    return (objects, try stream.finish())
  }

  static func watch(_ kind: ObjectKind, _ format: WireFormat, pieces size: Int) throws -> [WatchFrame] {
    var stream = WatchStream(kind, format)
    return try pieces(of: try bytes("\(kind)Watch", format), size).flatMap { try stream.append($0) }
  }

  /// Some bytes changed, a part left out, doubled or moved.
  static func damaged(_ whole: [UInt8], using random: inout some RandomNumberGenerator) -> [UInt8] {
    var bytes = whole
    for _ in 0..<Int.random(in: 1...4, using: &random) where !bytes.isEmpty {
      let place = Int.random(in: 0..<bytes.count, using: &random)
      let length = min(Int.random(in: 1...40, using: &random), bytes.count - place)
      switch Int.random(in: 0..<6, using: &random) {
      case 0: bytes[place] = UInt8.random(in: 0...255, using: &random)
      case 1: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
      case 2: bytes.removeSubrange(place..<place + length)
      case 3: bytes.insert(contentsOf: bytes[place..<place + length], at: place)
      case 4: bytes[place] = [0, 0x7f, 0x80, 0xff].randomElement(using: &random) ?? 0
      default: bytes.removeLast(length)
      }
    }
    return bytes
  }
}

/// A tree with nothing but what a schema knows and means, whichever form it came in.
private enum Projection {
  static func of(_ tree: ManifestNode, _ schema: MessageSchema) -> ManifestNode {
    var entries: [ManifestNode.Entry] = []
    for field in schema.knownFields.sorted(by: { $0.name < $1.name }) {
      guard let value = tree[field.name] else { continue }
      let meant: ManifestNode
      switch (field.isRepeated, value) {
      case (true, .sequence(let elements, _)):
        guard !elements.isEmpty else { continue }
        meant = .sequence(elements.map { self.value($0, field) }, line: 0)
      default: meant = self.value(value, field)
      }
      if !field.isRepeated, !field.isPointer, isEmpty(meant) { continue }
      entries.append(.init(field.name, meant))
    }
    return .mapping(entries, line: 0)
  }

  private static func value(_ node: ManifestNode, _ field: MessageSchema.Field) -> ManifestNode {
    switch (field.kind, node) {
    case (.message(let schema), _): return of(node, schema)
    case (.map, .mapping(let entries, _)): return .mapping(entries.sorted { $0.key < $1.key }, line: 0)
    default: return node
    }
  }

  /// Zero of a field that is no pointer, which JSON leaves out; a message of nothing but such fields.
  private static func isEmpty(_ node: ManifestNode) -> Bool {
    switch node {
    case .null, .mapping([], _), .scalar("", _, _): true
    case .scalar("0", isQuoted: false, _), .scalar("false", isQuoted: false, _): true
    default: false
    }
  }

  /// Every path in the tree that ends in a value.
  static func paths(_ node: ManifestNode, _ path: String, _ found: inout Set<String>) {
    switch node {
    case .mapping(let entries, _):
      if !entries.isEmpty { found.insert(path) }
      for entry in entries { paths(entry.value, "\(path).\(entry.key)", &found) }
    case .sequence(let elements, _): for element in elements { paths(element, path, &found) }
    case .scalar: found.insert(path)
    case .null: break
    }
  }

  static func paths(_ schema: MessageSchema, _ path: String = "") -> Set<String> {
    var all: Set<String> = []
    for field in schema.knownFields {
      let own = "\(path).\(field.name)"
      all.insert(own)
      if case .message(let inner) = field.kind { all.formUnion(paths(inner, own)) }
    }
    return all
  }
}
