import ClusterSource
import LocalAPI

/// The body of a watch: what there is, where that is asked for, then what happens, until its time is over.
struct WatchAnswer: Sendable {
  let request: APIRequest
  let form: WireForm
  let store: ObjectStore
  let faults: Faults
  let bookmarkInterval: Duration
  private let selector: Selector
  private let start: Int?

  init(
    _ request: APIRequest, form: WireForm, store: ObjectStore, faults: Faults, bookmarkInterval: Duration
  ) throws(Refusal) {
    (self.request, self.form, self.store, self.faults) = (request, form, store, faults)
    self.bookmarkInterval = bookmarkInterval
    selector = try request.selector
    let version = try request.version()
    start = version.number
    if let number = version.number, number > store.version { throw .tooLarge(number, current: store.version) }
  }

  /// The connection is torn where it stands.
  struct Torn: Error {}

  func write(_ send: ([UInt8]) async throws -> Void) async throws {
    let clock = ContinuousClock()
    let end = clock.now + .seconds(request.timeoutSeconds)
    var position: Int
    if let start, !request.sendsInitialEvents {
      position = start
    } else {
      position = try await sendState(send)
    }
    var announced = position
    var nextBookmark = clock.now + bookmarkInterval
    let news = store.news()
    let ticks = Task {
      while !Task.isCancelled {
        try await Task.sleep(for: .milliseconds(50))
        store.wake(news.number)
      }
    }
    defer { ticks.cancel() }
    if faults.strike(.watchEndsAtOnce) { return }
    for await _ in news.stream {
      if faults.strike(.expiredWatch) { return try await send(form.errorFrame(.expired("too old resource version"))) }
      let events: [ObjectStore.Event]
      do {
        let upTo: Int
        (events, upTo) = try store.events(request.kind, after: position)
        position = upTo
      } catch {
        return try await send(form.errorFrame(error))
      }
      for event in events {
        guard let frame = frame(for: event) else { continue }
        if faults.strike(.cutMidFrame) {
          try await send(Array(frame.prefix(faults.number(in: 1...frame.count - 1))))
          throw Torn()
        }
        try await send(frame)
      }
      let wanted = store.announced
      if request.allowsBookmarks, clock.now >= nextBookmark || wanted > announced && position >= wanted {
        announced = wanted
        nextBookmark = clock.now + bookmarkInterval
        try await send(bookmark(position, isEndOfList: false))
      }
      if clock.now >= end { return }
    }
  }

  private func sendState(_ send: ([UInt8]) async throws -> Void) async throws -> Int {
    let (objects, version) = try store.objects(request.kind, at: nil)
    var batch: [UInt8] = []
    for (name, object) in objects where isMeant(name) && selector.matches(object) {
      batch += form.frame("ADDED", object, request.kind)
      guard batch.count > 1 << 16 else { continue }
      if faults.strike(.cutMidFrame) {
        try await send(Array(batch.dropLast(faults.number(in: 1...100))))
        throw Torn()
      }
      try await send(batch)
      batch = []
    }
    if request.sendsInitialEvents, request.allowsBookmarks { batch += bookmark(version, isEndOfList: true) }
    if !batch.isEmpty { try await send(batch) }
    return version
  }

  private func isMeant(_ name: ObjectStore.Name) -> Bool { request.namespace.map { $0 == name.namespace } ?? true }

  /// An object that begins to be selected is added, one that ceases to be is deleted.
  private func frame(for event: ObjectStore.Event) -> [UInt8]? {
    guard isMeant(event.name) else { return nil }
    let wasMeant = event.old.map(selector.matches) ?? false
    if let new = event.new, selector.matches(new) {
      return form.frame(wasMeant ? "MODIFIED" : "ADDED", new, request.kind)
    }
    guard wasMeant, let old = event.old else { return nil }
    // As it last was, but of the version of its deletion.
    return form.frame("DELETED", old.with(version: event.version), request.kind)
  }

  private func bookmark(_ version: Int, isEndOfList: Bool) -> [UInt8] {
    var metadata: JSONObject = ["resourceVersion": .string("\(version)"), "creationTimestamp": nil]
    if isEndOfList { metadata["annotations"] = ["k8s.io/initial-events-end": "true"] }
    let object: JSONValue = [
      "kind": .string(request.kind.kind), "apiVersion": .string(request.kind.apiVersion),
      "metadata": .object(metadata),
    ]
    return form.frame("BOOKMARK", object, request.kind)
  }
}

extension JSONValue {
  fileprivate func with(version: Int) -> JSONValue {
    guard var object = objectValue, var metadata = object["metadata"]?.objectValue else { return self }
    metadata["resourceVersion"] = .string("\(version)")
    object["metadata"] = .object(metadata)
    return .object(object)
  }
}
