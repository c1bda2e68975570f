import Glibc
import KubernetesObjects
import LocalAPI

/// The objects of one kind on disk, for an agent that starts while no API server answers: a watch as the API server would tell
/// it in JSON, one event to a line. A list writes it anew, changes are appended, so that what is written is proportional to
/// what changed. Whatever is cut off or damaged at its end is of no harm: what stands before it is how things were a little
/// earlier.
///
/// No line is waited for on the disk: what an agent's death leaves unwritten is nothing, what a power cut takes is the end.
final class ObjectJournal {
  /// Changes beyond the list are dropped by a rewrite once they are this many times its size, and more than `leastChanges`.
  private static let growth = 2
  private static let leastChanges = 4 << 20

  let path: String
  private let kind: ObjectKind
  /// Whose objects they are: another cluster's are of no use.
  private let cluster: String
  private var file: CInt = -1
  private var listBytes = 0
  private var changeBytes = 0
  /// A list that is being told goes beside, and takes the place of the old at its end.
  private var isListing = false
  /// Why nothing is written any more, until the next list; nil: it is.
  private(set) var failure: String?

  init(folder: String, kind: ObjectKind, cluster: String) {
    path = Self.path(folder, kind)
    self.kind = kind
    self.cluster = cluster
  }

  deinit { if file >= 0 { close(file) } }

  private var temporary: String { Self.temporary(path) }

  /// Takes the journals of all kinds out of their folder.
  static func removeAll(in folder: String) throws(FileError) {
    for kind in ObjectKind.allCases {
      let path = path(folder, kind)
      for file in [path, temporary(path)] { try LocalFile.remove(file) }
    }
  }

  private static func path(_ folder: String, _ kind: ObjectKind) -> String { "\(folder)/\(kind.plural).jsonl" }
  private static func temporary(_ path: String) -> String { path + ".new" }

  // MARK: Reading

  /// What was written, event by event.
  ///
  /// - Returns: nil where there is nothing of this cluster.
  func reader() -> JournalReader? {
    guard let lines = LineReader(path), lines.next().map({ Array($0) }) == Self.header(cluster) else { return nil }
    return JournalReader(lines, kind)
  }

  // MARK: Writing

  func beginList() {
    discard()
    isListing = true
    file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_APPEND, 0o600)
    guard file >= 0 else { return fail("create") }
    listBytes = 0
    write(Self.header(cluster) + [0x0a])
  }

  func append(_ tree: ManifestNode) { write(line("ADDED", tree.withoutManagedFields)) }

  func remove(_ tree: ManifestNode) {
    // Its key is all that is asked for.
    var metadata: [ManifestNode.Entry] = []
    for key in ["namespace", "name", "resourceVersion"] {
      if let value = tree["metadata"]?[key] { metadata.append(.init(key, value)) }
    }
    let named = ManifestNode.mapping([.init("metadata", .mapping(metadata, line: 0))], line: 0)
    write(line("DELETED", named))
  }

  /// All of the list has been told.
  ///
  /// - Parameter kept: objects that the list has in a form which is no good: as they were in the journal before they stay.
  func endList(at version: String, keeping kept: Set<ObjectKey> = []) {
    if !kept.isEmpty, let reader = reader() {
      var lines: [ObjectKey: [UInt8]] = [:]
      while let (frame, _, line) = reader.next() {
        if case .present(let tree) = frame, let key = tree.key(of: kind), kept.contains(key) { lines[key] = line }
      }
      for line in lines.values { write(line + [0x0a]) }
    }
    bookmark(version)
    guard isListing, failure == nil else { return }
    // What has the name is a whole list, whatever happens.
    guard fsync(file) == 0 else { return fail("sync") }
    isListing = false
    guard rename(temporary, path) == 0 else { return fail("rename") }
    (listBytes, changeBytes) = (changeBytes, 0)
  }

  /// All before this version has been told.
  func bookmark(_ version: String) {
    let metadata = ManifestNode.mapping([.init("resourceVersion", .scalar(version, isQuoted: true, line: 0))], line: 0)
    write(line("BOOKMARK", .mapping([.init("metadata", metadata)], line: 0)))
    if !isListing, failure == nil, changeBytes > max(Self.leastChanges, Self.growth * listBytes) {
      rewrite(at: version)
    }
  }

  /// What is read back is written anew, each object once.
  private func rewrite(at version: String) {
    guard let reader = reader() else { return fail("read") }
    var lines: [ObjectKey: Int] = [:]
    while let (frame, number, _) = reader.next() {
      switch frame {
      case .present(let tree): if let key = tree.key(of: kind) { lines[key] = number }
      case .gone(let tree): if let key = tree.key(of: kind) { lines[key] = nil }
      case .bookmark, .failed: continue
      }
    }
    guard !reader.isDamaged else {
      errno = EIO
      return fail("read")
    }
    let kept = Set(lines.values)
    guard let reader = self.reader() else { return fail("read") }
    beginList()
    while let (_, number, line) = reader.next() {
      if kept.contains(number) { write(line + [0x0a]) }
    }
    endList(at: version)
  }

  private static func header(_ cluster: String) -> [UInt8] {
    let header: JSONValue = ["journal": "sluice.dev/v1", "cluster": .string(cluster)]
    return Array(header.serialized().utf8)
  }

  private func line(_ type: String, _ tree: ManifestNode) -> [UInt8] {
    let event: JSONValue = ["type": .string(type), "object": JSONTree.value(tree)]
    return Array(event.serialized().utf8) + [0x0a]
  }

  private func write(_ bytes: [UInt8]) {
    guard file >= 0 else { return }
    var rest = bytes[...]
    while !rest.isEmpty {
      let count = rest.withUnsafeBytes { Glibc.write(file, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      // Half a line is the end of what is read.
      guard count > 0 else { return fail("write") }
      rest = rest.dropFirst(count)
    }
    changeBytes += bytes.count
  }

  private func fail(_ operation: String) {
    let problem = "\(operation): \(String(cString: strerror(errno)))"
    discard()
    failure = problem
  }

  private func discard() {
    if file >= 0 { close(file) }
    if isListing { unlink(temporary) }
    (file, isListing, failure, changeBytes) = (-1, false, nil, 0)
  }
}

/// A journal's events.
final class JournalReader {
  private let lines: LineReader
  private var stream: WatchStream
  private var number = 0
  /// What was read last made no sense: what stands behind it has not been read.
  private(set) var isDamaged = false

  fileprivate init(_ lines: LineReader, _ kind: ObjectKind) {
    self.lines = lines
    stream = WatchStream(kind, .json)
  }

  /// The next event, its line's number and the line; nil at the end of what can be read.
  func next() -> (frame: WatchFrame, number: Int, line: [UInt8])? {
    guard let line = lines.next().map({ Array($0) }) else {
      isDamaged = lines.hasFailed
      return nil
    }
    guard let frame = try? stream.append(line + [0x0a]).first else {
      isDamaged = true
      return nil
    }
    number += 1
    return (frame, number, line)
  }
}

/// Lines of a file, without ever holding all of it.
private final class LineReader {
  private let file: CInt
  private var queue = ByteQueue()
  private var searched = 0
  private(set) var hasFailed = false

  init?(_ path: String) {
    file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
    guard file >= 0 else { return nil }
  }

  deinit { close(file) }

  /// nil: there is none any more; what stands behind the last line's end is none.
  func next() -> ArraySlice<UInt8>? {
    while true {
      if let end = queue.bytes[queue.range.dropFirst(searched)].firstIndex(of: 0x0a) {
        searched = 0
        let line = queue.take(end - queue.start)
        _ = queue.take(1)
        return queue.bytes[line]
      }
      searched = queue.count
      guard searched <= WireFormat.objectLimit else {
        hasFailed = true
        return nil
      }
      var chunk = [UInt8](repeating: 0, count: 1 << 16)
      let count = Glibc.read(file, &chunk, chunk.count)
      if count < 0, errno == EINTR { continue }
      hasFailed = count < 0
      guard count > 0 else { return nil }
      queue.append(chunk[..<count])
    }
  }
}

extension ManifestNode {
  /// Who wrote which field is half of many objects, where the API server speaks JSON.
  fileprivate var withoutManagedFields: ManifestNode {
    guard case .mapping(let entries, let line) = self else { return self }
    return .mapping(
      entries.map { entry in
        guard entry.key == "metadata", case .mapping(let fields, let line) = entry.value else { return entry }
        return Entry("metadata", .mapping(fields.filter { $0.key != "managedFields" }, line: line))
      }, line: line)
  }
}
