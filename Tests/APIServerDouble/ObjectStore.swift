import Foundation
import LocalAPI
import Synchronization

/// All objects with their history, as etcd and the API server's watch cache keep them: one number counts all changes, and
/// what lies too far back is forgotten.
package final class ObjectStore: Sendable {
  package struct Name: Hashable, Sendable, Comparable {
    package var namespace: String
    package var name: String

    package init(_ namespace: String, _ name: String) { (self.namespace, self.name) = (namespace, name) }

    package static func < (left: Name, right: Name) -> Bool {
      left.namespace != right.namespace ? left.namespace < right.namespace : left.name < right.name
    }
  }

  struct Event: Sendable {
    var version: Int
    var kind: ServedKind
    var name: Name
    /// nil: it was not there.
    var old: JSONValue?
    /// nil: it is gone.
    var new: JSONValue?
  }

  private struct State {
    var version = 1000
    var objects: [ServedKind: [Name: JSONValue]] = [:]
    /// Every watch tells of it, also where nothing happened that it is about.
    var announced = 0
    /// One for each version beyond `horizon`, in order.
    var log: [Event] = []
    /// Of the newest change that is forgotten.
    var horizon = 1000
    var watchers: [Int: AsyncStream<Void>.Continuation] = [:]
    var lastWatcher = 0
  }

  private let state = Mutex(State())

  package init() {}

  package var version: Int { state.withLock { $0.version } }

  package func objects(_ kind: ServedKind) -> [Name: JSONValue] { state.withLock { $0.objects[kind] ?? [:] } }

  // MARK: Changing

  /// Puts an object in place of what has its name, if anything has.
  ///
  /// - Parameter isWhole: uid and time of creation are taken from it where it has them, as by whoever writes to storage
  ///   itself; else they are the server's.
  /// - Throws: where the object names a version other than the one there is.
  @discardableResult
  package func put(_ object: JSONValue, _ kind: ServedKind, isWhole: Bool = false) throws(Refusal) -> JSONValue {
    guard var metadata = object["metadata"]?.objectValue, let text = metadata["name"]?.stringValue, !text.isEmpty else {
      throw .invalid(kind.kind, "metadata.name", "Required value: name or generateName is required")
    }
    let name = Name(kind.isNamespaced ? metadata["namespace"]?.stringValue ?? "default" : "", text)
    return try change { (state) throws(Refusal) in
      let old = state.objects[kind]?[name]
      if let expected = metadata["resourceVersion"]?.stringValue, !expected.isEmpty,
        expected != old?["metadata"]?["resourceVersion"]?.stringValue
      {
        throw Refusal(
          409, "Conflict",
          "Operation cannot be fulfilled on \(kind.resource) \"\(text)\": the object has been modified; please apply your "
            + "changes to the latest version and try again")
      }
      if kind.isNamespaced { metadata["namespace"] = .string(name.namespace) }
      for (key, new) in [("uid", UUID().uuidString.lowercased()), ("creationTimestamp", Self.now())]
      where !isWhole || metadata[key] == nil { metadata[key] = old?["metadata"]?[key] ?? .string(new) }
      metadata["resourceVersion"] = .string("\(state.version + 1)")
      guard var whole = object.objectValue else { throw .badRequest("not an object") }
      whole["apiVersion"] = .string(kind.apiVersion)
      whole["kind"] = .string(kind.kind)
      whole["metadata"] = .object(metadata)
      let new = JSONValue.object(whole)
      Self.record(&state, kind, name, old, new)
      return new
    }
  }

  package func delete(_ kind: ServedKind, _ name: Name) throws(Refusal) {
    try change { (state) throws(Refusal) in
      guard let old = state.objects[kind]?[name] else { throw .notFound("\(kind.resource) \"\(name.name)\"") }
      Self.record(&state, kind, name, old, nil)
    }
  }

  private static func record(
    _ state: inout State, _ kind: ServedKind, _ name: Name, _ old: JSONValue?, _ new: JSONValue?
  ) {
    state.version += 1
    state.objects[kind, default: [:]][name] = new
    state.log.append(Event(version: state.version, kind: kind, name: name, old: old, new: new))
  }

  /// Tells all who listen afterwards, not under the lock: one whose task is cancelled at that moment holds the task's own lock
  /// and wants this one, to be forgotten.
  private func change<Result>(_ body: (inout State) throws(Refusal) -> Result) throws(Refusal) -> Result {
    let (result, watchers) = try state.withLock { (state) throws(Refusal) in
      (try body(&state), Array(state.watchers.values))
    }
    for watcher in watchers { watcher.yield() }
    return result
  }

  package static func now() -> String { Date().formatted(.iso8601) }

  /// Forgets all but the newest changes.
  package func compact(keeping count: Int) {
    state.withLock { state in
      let gone = max(0, state.log.count - count)
      guard gone > 0 else { return }
      state.horizon = state.log[gone - 1].version
      state.log.removeFirst(gone)
    }
  }

  /// Has every watch send a bookmark: who hears of this version on all its watches knows all there is by now.
  package func announce() -> Int {
    let (version, watchers) = state.withLock { state in
      state.announced = state.version
      return (state.version, Array(state.watchers.values))
    }
    for watcher in watchers { watcher.yield() }
    return version
  }

  var announced: Int { state.withLock { $0.announced } }

  // MARK: Looking

  /// All objects of a kind as they were at a version, in order.
  ///
  /// - Parameter version: nil: now.
  func objects(_ kind: ServedKind, at version: Int?) throws(Refusal) -> (objects: [(Name, JSONValue)], version: Int) {
    try state.withLock { (state) throws(Refusal) in
      let version = version ?? state.version
      var objects = state.objects[kind] ?? [:]
      guard version <= state.version else { throw .tooLarge(version, current: state.version) }
      guard version >= state.horizon else { throw .expired("The provided continue parameter is too old") }
      for event in state.log.reversed() where event.kind == kind {
        guard event.version > version else { break }
        objects[event.name] = event.old
      }
      return (objects.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }, version)
    }
  }

  /// What happened to objects of a kind after a version, and to which version that is all.
  func events(_ kind: ServedKind, after version: Int) throws(Refusal) -> (events: [Event], upTo: Int) {
    try state.withLock { (state) throws(Refusal) in
      guard version <= state.version else { throw .tooLarge(version, current: state.version) }
      guard version >= state.horizon else { throw .expired("too old resource version: \(version) (\(state.horizon))") }
      let news = state.log[(version - state.horizon)...]
      return (news.filter { $0.kind == kind }, state.version)
    }
  }

  /// Something comes for each change from now on; several changes may make one.
  func news() -> (stream: AsyncStream<Void>, number: Int) {
    let (stream, continuation) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    let number = state.withLock { state in
      state.lastWatcher += 1
      state.watchers[state.lastWatcher] = continuation
      return state.lastWatcher
    }
    continuation.onTermination = { _ in self.state.withLock { _ = $0.watchers.removeValue(forKey: number) } }
    return (stream, number)
  }

  /// For one that listens, as if there were news.
  func wake(_ number: Int) { state.withLock { $0.watchers[number] }?.yield() }
}
