import ClusterSource
import FoundationEssentials
import Glibc
import KubernetesObjects

/// A folder of its own under the system's temporary folder, gone with the value.
final class TemporaryFolder {
  let path: String

  init() throws {
    var template = Array("/tmp/sluice-worlds-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw Unreadable(description: "mkdtemp: errno \(errno)") }
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }
}

struct Unreadable: Error, CustomStringConvertible { let description: String }

/// What the manifest folder makes of a text, in its order; no problem is forgiven.
func objects(inManifests text: String) async throws -> [ClusterObject] {
  let folder = try TemporaryFolder()
  let path = "\(folder.path)/world.yaml"
  guard let file = fopen(path, "w") else { throw Unreadable(description: "\(path): errno \(errno)") }
  let written = fwrite(text, 1, text.utf8.count, file)
  guard fclose(file) == 0, written == text.utf8.count else { throw Unreadable(description: "\(path): not written") }
  var objects: [ClusterObject] = []
  for await event in ManifestFolder(path: folder.path).events() {
    switch event {
    case .changes(let changes, _):
      for change in changes {
        guard case .upsert(let object) = change else { throw Unreadable(description: "\(change)") }
        objects.append(object)
      }
    case .problems(let problems, _):
      if !problems.isEmpty { throw Unreadable(description: "\(problems)\n\(text)") }
    case .ignoredKinds(let kinds):
      if !kinds.isEmpty { throw Unreadable(description: "\(kinds)\n\(text)") }
    case .synced: return objects
    case .reach: break
    }
  }
  throw Unreadable(description: "the folder was never read")
}
