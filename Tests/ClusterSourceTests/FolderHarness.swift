import ClusterSource
import Glibc
import KubernetesObjects
import Synchronization

struct TimedOut: Error, CustomStringConvertible { let description: String }

/// A folder of its own under the system's temporary folder, gone with the value.
final class TemporaryFolder: Sendable {
  let path: String

  init() throws {
    var template = Array("/tmp/sluice-manifests-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw TimedOut(description: "mkdtemp") }
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  deinit { removeTree(path) }

  /// As an editor does: a new file, renamed over the old.
  func replace(_ name: String, _ text: String) {
    write(".\(name).tmp", text)
    rename("\(path)/.\(name).tmp", "\(path)/\(name)")
  }

  /// As a shell does: the file is cut to nothing, then written.
  func write(_ name: String, _ text: String) {
    guard let file = fopen("\(path)/\(name)", "w") else { return }
    fwrite(text, 1, text.utf8.count, file)
    fclose(file)
  }

  func remove(_ name: String) { unlink("\(path)/\(name)") }
}

func removeTree(_ path: String) {
  if let folder = opendir(path) {
    while let entry = readdir(folder) {
      let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      if name == "." || name == ".." { continue }
      var status = stat()
      lstat("\(path)/\(name)", &status)
      if status.st_mode & S_IFMT == S_IFDIR { removeTree("\(path)/\(name)") } else { unlink("\(path)/\(name)") }
    }
    closedir(folder)
  }
  rmdir(path)
}

/// Follows a folder and keeps what its events add up to.
final class FolderWatch: Sendable {
  struct Seen: Sendable {
    var objects: [ObjectID: ClusterObject] = [:]
    /// One array for each event of changes: `+Service shop/api`, `-Service shop/api`.
    var changes: [[String]] = []
    var problems: [String: [String]] = [:]
    var ignoredKinds: [String: Int] = [:]
    var isSynced = false
  }

  private let seen = Mutex(Seen())
  private let task: Mutex<Task<Void, Never>?> = Mutex(nil)

  init(_ path: String) {
    let events = ManifestFolder(path: path).events()
    let task = Task { [weak self] in
      for await event in events { self?.note(event) }
    }
    self.task.withLock { $0 = task }
  }

  deinit { task.withLock { $0?.cancel() } }

  var now: Seen { seen.withLock { $0 } }

  private func note(_ event: SourceEvent) {
    seen.withLock { seen in
      switch event {
      case .changes(let changes, _):
        seen.changes.append(
          changes.map { change in
            if case .upsert = change { "+\(change.id)" } else { "-\(change.id)" }
          })
        for change in changes {
          if case .upsert(let object) = change {
            seen.objects[change.id] = object
          } else {
            seen.objects[change.id] = nil
          }
        }
      case .problems(let problems, let file):
        seen.problems[file] = problems.isEmpty ? nil : problems.map(\.description)
      case .ignoredKinds(let kinds): seen.ignoredKinds = kinds
      case .synced: seen.isSynced = true
      case .reach: break
      }
    }
  }

  /// Waits until what was seen is as expected, at most ten seconds.
  @discardableResult
  func until(_ what: String, _ holds: (Seen) -> Bool) async throws -> Seen {
    for _ in 0..<5000 {
      let seen = now
      if holds(seen) { return seen }
      try await Task.sleep(for: .milliseconds(2))
    }
    throw TimedOut(description: "\(what) did not happen: \(now)")
  }

  func synced() async throws -> Seen { try await until("the first reading") { $0.isSynced } }
}

func serviceID(_ name: String) -> ObjectID { ObjectID(.service, ObjectKey(namespace: "shop", name: name)) }

func service(_ name: String, port: String = "80") -> String {
  """
  ---
  apiVersion: v1
  kind: Service
  metadata:
    name: \(name)
    namespace: shop
  spec:
    ports:
      - port: \(port)

  """
}

extension FolderWatch.Seen {
  func port(_ name: String) -> Int? {
    guard case .service(let service)? = objects[serviceID(name)] else { return nil }
    return service.ports.first.map { Int($0.port.number) }
  }
}
