import KubernetesObjects

/// Which file of a folder holds which object, and what an edit of a file changes. Knows nothing of reading or watching.
///
/// It keeps a hash of each object and not the object: the reader of the changes keeps those.
struct FolderIndex {
  struct Entry {
    var hash: Int
    var line: Int32
  }

  /// What one reading of a file found, up to the objects themselves.
  struct Reading {
    var entries: [ObjectID: Entry] = [:]
    /// Bad, but with a readable identity: the last good version stays in force.
    var badObjects: Set<ObjectID> = []
    /// Something in the file does not say what it is: no object may be missed because of it.
    var hasUnreadablePart = false
    var problems: [ObjectProblem] = []
    var ignoredKinds: [String: Int] = [:]
    /// The objects that are new or changed against what the index holds of this file.
    var changed: [(ObjectID, ClusterObject)] = []
  }

  private struct File {
    var entries: [ObjectID: Entry] = [:]
    var problems: [ObjectProblem] = []
    var ignoredKinds: [String: Int] = [:]
  }

  private var files: [String: File] = [:]
  /// The file whose version of the object is in force: the first by name of those that hold it.
  private var owners: [ObjectID: String] = [:]
  /// The other files that hold the object.
  private var losers: [ObjectID: Set<String>] = [:]
  private var reportedProblems: [String: [ObjectProblem]] = [:]
  private var ignoredKinds: [String: Int] = [:]
  private var reportedIgnoredKinds: [String: Int] = [:]
  /// Files whose problems may be others than were reported.
  private var touched: Set<String> = []
  /// Files that have to be read again because an object of theirs came into force.
  private(set) var filesToReadAgain: Set<String> = []
  private(set) var changes: [ObjectChange] = []

  var fileNames: [String] { Array(files.keys) }

  /// Whether a reading of the file has to hand in the object: it is not known to be in force as it is.
  func isChanged(_ id: ObjectID, hash: Int, in file: String) -> Bool { files[file]?.entries[id]?.hash != hash }

  /// The file's content is as read.
  mutating func update(_ name: String, with reading: Reading) {
    filesToReadAgain.remove(name)
    touched.insert(name)
    let old = files[name]?.entries ?? [:]
    var new = File(entries: reading.entries, problems: reading.problems, ignoredKinds: reading.ignoredKinds)
    for (id, entry) in old where new.entries[id] == nil {
      if reading.hasUnreadablePart || reading.badObjects.contains(id) {
        new.entries[id] = entry
      } else {
        release(id, hash: entry.hash, by: name)
      }
    }
    ignoredKinds.replace(files[name]?.ignoredKinds ?? [:], by: new.ignoredKinds)
    files[name] = new
    for (id, object) in reading.changed { claim(id, object, by: name) }
  }

  /// The file could not be read: what it held stays.
  mutating func keep(_ name: String, because problem: ObjectProblem) {
    filesToReadAgain.remove(name)
    touched.insert(name)
    files[name, default: File()].problems = [problem]
  }

  /// The file is to be left as it is known.
  mutating func leave(_ name: String) { filesToReadAgain.remove(name) }

  /// The file is gone.
  mutating func remove(_ name: String) {
    filesToReadAgain.remove(name)
    guard let file = files.removeValue(forKey: name) else { return }
    touched.insert(name)
    ignoredKinds.replace(file.ignoredKinds, by: [:])
    for (id, entry) in file.entries.sorted(by: { $0.key < $1.key }) { release(id, hash: entry.hash, by: name) }
  }

  /// Hands over what changed since the last call.
  mutating func takeChanges() -> [ObjectChange] {
    defer { changes = [] }
    return changes
  }

  /// The problems that are others than at the last call, by file.
  mutating func takeProblems() -> [(file: String, problems: [ObjectProblem])] {
    defer { touched = [] }
    var result: [(String, [ObjectProblem])] = []
    for name in touched.sorted() {
      let problems = currentProblems(of: name)
      guard problems != reportedProblems[name] ?? [] else { continue }
      reportedProblems[name] = problems.isEmpty ? nil : problems
      result.append((name, problems))
    }
    return result
  }

  /// The counts over all files, where they are others than at the last call.
  mutating func takeIgnoredKinds() -> [String: Int]? {
    guard ignoredKinds != reportedIgnoredKinds else { return nil }
    reportedIgnoredKinds = ignoredKinds
    return ignoredKinds
  }

  // MARK: Who holds what

  private mutating func claim(_ id: ObjectID, _ object: ClusterObject, by name: String) {
    guard let owner = owners[id], owner != name else {
      owners[id] = name
      changes.append(.upsert(object))
      return
    }
    if name < owner {
      owners[id] = name
      losers[id, default: []].remove(name)
      losers[id, default: []].insert(owner)
      touched.formUnion(losers[id] ?? [])
      if files[name]?.entries[id]?.hash != files[owner]?.entries[id]?.hash { changes.append(.upsert(object)) }
    } else {
      losers[id, default: []].insert(name)
    }
  }

  private mutating func release(_ id: ObjectID, hash: Int, by name: String) {
    if var others = losers[id] {
      defer { losers[id] = others.isEmpty ? nil : others }
      guard owners[id] == name else {
        others.remove(name)
        return
      }
      if let next = others.min() {
        others.remove(next)
        owners[id] = next
        touched.insert(next)
        touched.formUnion(others)
        // The same content needs no change. Other content is not in memory: the file is read again for it.
        if let other = files[next]?.entries[id]?.hash, other != hash {
          files[next]?.entries[id]?.hash = ~other
          filesToReadAgain.insert(next)
        }
        return
      }
    }
    guard owners[id] == name else { return }
    owners[id] = nil
    changes.append(.delete(id.kind, id.key))
  }

  private func currentProblems(of name: String) -> [ObjectProblem] {
    guard let file = files[name] else { return [] }
    // Few objects are in two files, so this does not walk over the file's own.
    let duplicates = losers.compactMap { id, others -> ObjectProblem? in
      guard others.contains(name), let entry = file.entries[id], let owner = owners[id] else { return nil }
      return ObjectProblem(
        file: name, line: Int(entry.line), object: id.description, field: "",
        message: "is defined in \(owner) too, which is the one in force")
    }
    return file.problems + duplicates.sorted { ($0.line, $0.object) < ($1.line, $1.object) }
  }
}

extension [String: Int] {
  /// Of a sum of counts: takes one part out and puts another in its place; keeps no zeros.
  fileprivate mutating func replace(_ old: [String: Int], by new: [String: Int]) {
    for (kind, count) in old { self[kind, default: 0] -= count }
    for (kind, count) in new { self[kind, default: 0] += count }
    for kind in old.keys where self[kind] == 0 { self[kind] = nil }
  }
}
