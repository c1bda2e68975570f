import Glibc
import KubernetesObjects

/// Reading one file of a folder into what the index wants to know.

/// Owns a file descriptor.
struct OwnedDescriptor: ~Copyable {
  let number: Int32

  /// nil where the call that should have made it failed; errno says why.
  init?(_ number: Int32) {
    guard number >= 0 else { return nil }
    self.number = number
  }

  deinit { close(number) }
}

/// What tells one state of a file from another without reading it.
struct FileStamp: Equatable {
  private var device: UInt64
  private var inode: UInt64
  private(set) var size: Int64
  private var modified: Int64
  private var changed: Int64

  init(_ status: stat) {
    device = UInt64(status.st_dev)
    inode = UInt64(status.st_ino)
    size = Int64(status.st_size)
    modified = Int64(status.st_mtim.tv_sec) * 1_000_000_000 + Int64(status.st_mtim.tv_nsec)
    changed = Int64(status.st_ctim.tv_sec) * 1_000_000_000 + Int64(status.st_ctim.tv_nsec)
  }

  /// The kernel stamps files with the time of its last tick: a second write right after the first may look the same.
  /// A stamp proves nothing until the file has been left alone for a while.
  var isSettled: Bool {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec) - max(changed, modified) > 100_000_000
  }
}

struct ManifestFile {
  enum Outcome {
    case read(FolderIndex.Reading, FileStamp)
    /// There is no regular file of that name.
    case absent
    case failed(String)
  }

  /// More in one document than anyone means to write, and more than its tree should take of memory.
  static let maximumDocumentBytes = 8 << 20

  let path: String
  let name: String

  static func isManifest(_ name: String) -> Bool {
    !name.hasPrefix(".")
      && [".yaml", ".yml", ".json"].contains { name.hasSuffix($0) && name.utf8.count > $0.utf8.count }
  }

  /// The stamp of the file, its links followed; nil where there is none.
  var stamp: FileStamp? {
    var status = stat()
    return stat(path, &status) == 0 ? FileStamp(status) : nil
  }

  /// A name that appeared and is complete at once: nobody writes a link's content after its creation.
  var isLink: Bool {
    var status = stat()
    guard lstat(path, &status) == 0 else { return false }
    return status.st_mode & S_IFMT == S_IFLNK || status.st_nlink > 1
  }

  /// Reads it all; once more where it was written to meanwhile.
  func read(_ decoder: ObjectDecoder, against index: FolderIndex) -> Outcome {
    // A pipe or a device of that name must not hold up the folder.
    guard let file = OwnedDescriptor(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) else {
      return errno == ENOENT || errno == ELOOP ? .absent : .failed(errorText(errno))
    }
    var before = stat()
    guard fstat(file.number, &before) == 0 else { return .failed(errorText(errno)) }
    guard before.st_mode & S_IFMT == S_IFREG else { return .absent }
    var attempt = 1
    while true {
      var reading = FolderIndex.Reading()
      let stamp = FileStamp(before)
      let failure = readOnce(file.number, decoder, index, &reading)
      if failure != 0 { return .failed(errorText(failure)) }
      var after = stat()
      guard fstat(file.number, &after) == 0 else { return .failed(errorText(errno)) }
      // A writer that never rests will close the file one day, which is an event of its own.
      if FileStamp(after) == stamp || attempt == 5 { return .read(reading, stamp) }
      before = after
      attempt += 1
      lseek(file.number, 0, SEEK_SET)
    }
  }

  /// 0 or an errno.
  private func readOnce(
    _ file: Int32, _ decoder: ObjectDecoder, _ index: FolderIndex, _ reading: inout FolderIndex.Reading
  ) -> Int32 {
    var splitter = DocumentSplitter()
    var chunk = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      let count = Glibc.read(file, &chunk, chunk.count)
      if count < 0 {
        if errno == EINTR { continue }
        return errno
      }
      if count == 0 { break }
      chunk.withUnsafeBytes { bytes in
        splitter.append(UnsafeRawBufferPointer(rebasing: bytes[..<count])) { piece in
          add(piece, decoder, index, &reading)
        }
      }
      if splitter.pendingBytes > Self.maximumDocumentBytes {
        reading.hasUnreadablePart = true
        let message = "is a document of more than \(Self.maximumDocumentBytes >> 20) MiB: cut it with lines of \"---\""
        reading.problems.append(problem(line: splitter.pendingLine, message))
        return 0
      }
    }
    splitter.finish { piece in add(piece, decoder, index, &reading) }
    return 0
  }

  private func problem(line: Int, _ message: String) -> ObjectProblem {
    ObjectProblem(file: name, line: line, object: "", field: "", message: message)
  }

  private func add(
    _ piece: DocumentSplitter.Piece, _ decoder: ObjectDecoder, _ index: FolderIndex,
    _ reading: inout FolderIndex.Reading
  ) {
    do throws(YAMLProblem) {
      for document in try YAMLReader.documents(in: piece.bytes, firstLine: piece.firstLine) {
        add(decoder.decode(document, file: name), index, &reading)
      }
    } catch {
      reading.hasUnreadablePart = true
      reading.problems.append(problem(line: error.line, error.message))
    }
  }

  private func add(_ result: DecodeResult, _ index: FolderIndex, _ reading: inout FolderIndex.Reading) {
    switch result {
    case .object(let object, let problems, let line):
      let id = object.id
      if let first = reading.entries[id] {
        reading.problems.append(
          ObjectProblem(
            file: name, line: line, object: id.description, field: "",
            message: "stands in this file twice; the one in line \(first.line) is in force"))
        return
      }
      var hasher = Hasher()
      hasher.combine(object)
      let hash = hasher.finalize()
      reading.entries[id] = FolderIndex.Entry(hash: hash, line: Int32(clamping: line))
      reading.problems += problems
      if index.isChanged(id, hash: hash, in: name) { reading.changed.append((id, object)) }
    case .ignoredKind(_, let kind): reading.ignoredKinds[kind, default: 0] += 1
    case .list(let results):
      for result in results { add(result, index, &reading) }
    case .bad(let problem, let id):
      reading.problems.append(problem)
      if let id { reading.badObjects.insert(id) } else { reading.hasUnreadablePart = true }
    }
  }
}

/// What the system calls an errno.
func errorText(_ number: Int32) -> String { String(cString: strerror(number)) }
