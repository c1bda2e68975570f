import ClusterSource
import Foundation
import KubernetesObjects
import LocalAPI

/// Keeps a store equal to a folder of manifests: what a lab writes there for its agents is then told by an API server. What is
/// no object that is served is passed over; a file that cannot be read changes nothing.
package struct ManifestMirror {
  private struct Stamp: Equatable {
    var inode: UInt64
    var size: Int64
    var seconds: Int
    var nanoseconds: Int
  }

  private struct Place: Hashable {
    var kind: ServedKind
    var name: ObjectStore.Name
  }

  private let folder: String
  private let store: ObjectStore
  private var stamps: [String: Stamp] = [:]
  private var held: [String: [Place: JSONValue]] = [:]

  private let kinds: [ServedKind]

  /// - Parameter kinds: others in the folder are passed over.
  package init(folder: String, store: ObjectStore, kinds: [ServedKind] = ServedKind.all) {
    (self.folder, self.store, self.kinds) = (folder, store, kinds)
  }

  /// Looks for what changed; that costs one look at each file.
  package mutating func update() {
    let names = Set((try? LocalFile.names(in: folder)) ?? []).filter { !$0.hasPrefix(".") }
    // A file that is replaced while the folder is listed need not occur in the list.
    for name in held.keys where !names.contains(name) && access("\(folder)/\(name)", F_OK) != 0 {
      replace(name, by: [:])
      held[name] = nil
      stamps[name] = nil
    }
    for name in names.sorted() {
      var status = stat()
      guard stat("\(folder)/\(name)", &status) == 0 else { continue }
      let stamp = Stamp(
        inode: UInt64(status.st_ino), size: Int64(status.st_size), seconds: status.st_mtim.tv_sec,
        nanoseconds: status.st_mtim.tv_nsec)
      guard stamps[name] != stamp, let bytes = try? Data(contentsOf: URL(fileURLWithPath: "\(folder)/\(name)")),
        let documents = try? parseYAMLDocuments(Array(bytes))
      else { continue }
      stamps[name] = stamp
      var objects: [Place: JSONValue] = [:]
      for document in documents { collect(document, &objects) }
      replace(name, by: objects)
    }
  }

  private func collect(_ document: ManifestNode, _ objects: inout [Place: JSONValue]) {
    let object = JSONTree.value(document)
    if object["kind"]?.stringValue?.hasSuffix("List") == true {
      guard case .sequence(let items, _)? = document["items"] else { return }
      for item in items { collect(item, &objects) }
      return
    }
    guard let kind = object["kind"]?.stringValue.flatMap({ name in kinds.first { $0.kind == name } }),
      let metadata = object["metadata"],
      let name = metadata["name"]?.stringValue
    else { return }
    let namespace = kind.isNamespaced ? metadata["namespace"]?.stringValue ?? "default" : ""
    objects[Place(kind: kind, name: .init(namespace, name))] = object
  }

  private mutating func replace(_ file: String, by objects: [Place: JSONValue]) {
    let before = held[file] ?? [:]
    for (place, object) in objects where before[place] != object {
      _ = try? store.put(object, place.kind, isWhole: true)
    }
    for place in before.keys where objects[place] == nil {
      let isElsewhere = held.contains { $0.key != file && $0.value[place] != nil }
      if !isElsewhere { try? store.delete(place.kind, place.name) }
    }
    held[file] = objects
  }
}
