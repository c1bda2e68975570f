import APIServerDouble
import Foundation
import KubernetesObjects
import Testing

@testable import ClusterSource

/// What is known, on disk.
@Suite("What outlives the agent") struct ObjectJournalTests {
  private let folder: TestFolder
  private var path: String { "\(folder.path)/pods.jsonl" }

  init() throws { folder = try TestFolder() }

  private func journal(_ cluster: String = "c") -> ObjectJournal {
    ObjectJournal(folder: folder.path, kind: .pod, cluster: cluster)
  }

  private static func pod(_ name: String, _ version: Int, _ note: String = "") throws -> ManifestNode {
    try JSONTree.tree(
      Array(
        """
        {"metadata":{"name":"\(name)","namespace":"shop","resourceVersion":"\(version)","labels":{"a":"1","b":"true"},
        "annotations":{"n":"\(note)"},"managedFields":[{"manager":"x"}]},
        "spec":{"hostNetwork":true,"containers":[{"ports":[{"containerPort":80}]}]}}
        """.utf8)[...])
  }

  /// The objects that a journal leads to, by name, and its last version.
  private func memory(_ cluster: String = "c") -> (objects: [String: ManifestNode], version: String?)? {
    guard let reader = journal(cluster).reader() else { return nil }
    var objects: [String: ManifestNode] = [:]
    var version: String?
    while let (frame, _, _) = reader.next() {
      switch frame {
      case .present(let tree): objects[tree.key(of: .pod)?.name ?? ""] = tree
      case .gone(let tree): objects[tree.key(of: .pod)?.name ?? ""] = nil
      case .bookmark(let number, _): version = number
      case .failed: Issue.record("an error in a journal")
      }
    }
    return (objects, version)
  }

  @Test("a list and its changes are read back, texts as texts and numbers as numbers, of their cluster only")
  func roundTrip() throws {
    let journal = journal()
    journal.beginList()
    for name in ["a", "b", "c"] { journal.append(try Self.pod(name, 1)) }
    #expect(memory() == nil, "half a list is none")
    journal.endList(at: "7")
    journal.append(try Self.pod("b", 8))
    journal.remove(try Self.pod("c", 9))
    journal.bookmark("10")
    let read = try #require(memory())
    #expect(read.version == "10")
    #expect(read.objects.keys.sorted() == ["a", "b"])
    #expect(read.objects["b"]?.resourceVersion == "8")
    let decoder = ObjectDecoder()
    guard case .object(.pod(let pod), let problems, _) = decoder.decode(try #require(read.objects["a"]), as: .pod),
      case .object(.pod(let written), _, _) = decoder.decode(try Self.pod("a", 1), as: .pod)
    else { return #expect(Bool(false), "no pod") }
    #expect(pod == written && problems.isEmpty)
    #expect(try !String(contentsOfFile: path, encoding: .utf8).contains("managedFields"))
    #expect(memory("another") == nil)
    var status = stat()
    #expect(stat(path, &status) == 0 && status.st_mode & 0o777 == 0o600)
  }

  @Test("what is cut off or damaged costs what stands behind it, wherever that is")
  func damage() throws {
    let journal = journal()
    journal.beginList()
    for number in 0..<20 { journal.append(try Self.pod("p\(number)", number)) }
    journal.endList(at: "20")
    let whole = try Data(contentsOf: URL(fileURLWithPath: path))
    let lines = whole.split(separator: 0x0a, omittingEmptySubsequences: false)
    var random = SeededGenerator(seed: 3)
    for _ in 0..<60 {
      var bytes = whole
      let place = Int.random(in: lines[0].count + 1..<bytes.count, using: &random)
      if Bool.random(using: &random) { bytes = bytes.prefix(place) } else { bytes[place] = 0 }
      try bytes.write(to: URL(fileURLWithPath: path))
      let before = whole.prefix(place).count { $0 == 0x0a } - 1
      let read = try #require(memory())
      // A zero within a text is no JSON, so the line it is in counts for nothing; one in place of a line's end takes two.
      #expect(read.objects.count <= 20 && read.objects.count >= min(before - 1, 20) && read.objects.count <= before + 1)
      #expect(read.version == nil || read.objects.count == 20)
    }
  }

  @Test("changes are dropped once they are many, and what is left is what is known")
  func compaction() throws {
    let journal = journal()
    journal.beginList()
    for name in ["a", "b", "c"] { journal.append(try Self.pod(name, 1)) }
    journal.endList(at: "1")
    let note = String(repeating: "x", count: 10_000)
    var largest = 0
    for version in 2..<1500 {
      if version % 100 == 0 {
        journal.remove(try Self.pod("c", version))
      } else {
        journal.append(try Self.pod(version % 2 == 0 ? "a" : "c", version, note))
      }
      if version % 50 == 0 { journal.bookmark("\(version)") }
      var status = stat()
      if stat(path, &status) == 0 { largest = max(largest, Int(status.st_size)) }
    }
    journal.bookmark("1500")
    #expect(largest < 6 << 20, "15 MB were written")
    let read = try #require(memory())
    #expect(read.version == "1500" && journal.failure == nil)
    #expect(read.objects.mapValues(\.resourceVersion) == ["a": "1498", "b": "1", "c": "1499"])
  }

  @Test("where nothing can be written that is said, and it is tried again with the next list")
  func failure() throws {
    let journal = ObjectJournal(folder: "\(folder.path)/none", kind: .pod, cluster: "c")
    journal.beginList()
    #expect(journal.failure == "create: No such file or directory")
    journal.append(try Self.pod("a", 1))
    journal.endList(at: "1")
    try FileManager.default.createDirectory(atPath: "\(folder.path)/none", withIntermediateDirectories: true)
    journal.beginList()
    journal.append(try Self.pod("a", 1))
    journal.endList(at: "2")
    #expect(journal.failure == nil && journal.reader() != nil)
  }
}
