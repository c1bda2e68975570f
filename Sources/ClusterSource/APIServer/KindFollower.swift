import KubernetesObjects

/// What is heard of one kind.
enum KindEvent: Sendable, Equatable {
  case changes([ObjectChange], receivedAt: ContinuousClock.Instant)
  /// What is wrong with one object, all of it; empty: nothing any more. An object that is bad as a whole keeps its last good
  /// version.
  case problems([ObjectProblem], of: ObjectID)
  /// Why what is known would not outlive the agent; nil: it would again.
  case journal(path: String, failure: String?)
  /// What was known when an agent last ran has been told: in force only where no API server tells more.
  case restored
  /// Everything that was there has been told, for the first time.
  case synced
  case reached(ReachState)
}

/// Whether the API server tells of a kind.
enum ReachState: Sendable, Hashable {
  case following
  /// Why: what is known stays in force.
  case away(String)
  /// The server has no such kind: there are none.
  case notServed
}

/// Time and chance, for tests to decide.
struct FollowerSurroundings: Sendable {
  var now: @Sendable () -> Duration
  var sleep: @Sendable (Duration) async throws -> Void
  var random: @Sendable () -> any RandomNumberGenerator & Sendable

  static let real: FollowerSurroundings = {
    let start = ContinuousClock.now
    return FollowerSurroundings(
      now: { ContinuousClock.now - start }, sleep: { try await Task.sleep(for: $0) },
      random: { SystemRandomNumberGenerator() })
  }()
}

/// Lists the objects of one kind, then watches them, for ever: whatever becomes of connections, servers and their memories,
/// what is told is in the end what the server has. Nothing is told to be gone because a server is.
struct KindFollower {
  /// A watch ended at once with nothing in it.
  private struct ShortWatch: Error {}

  let kind: ObjectKind
  private let connection: any APIServerConnection
  private let surroundings: FollowerSurroundings
  private let journal: ObjectJournal?
  private let alarm: Alarm?
  private let progress: SourceProgress?
  private let emit: @Sendable (KindEvent) async -> Void
  private let decoder = ObjectDecoder()

  /// What has been told is there, with the list in which it was last.
  private var known: [ObjectKey: UInt32] = [:]
  /// Objects with problems, with the list in which they were last.
  private var troubled: [ObjectID: UInt32] = [:]
  /// Of the list that is being told: objects known in another form than the one it has, which is no good.
  private var keptAsTheyWere: Set<ObjectKey> = []
  private var listNumber: UInt32 = 0
  /// What the next watch goes on from; nil: a list is due.
  private var version: String?
  /// The newest version ever heard of: no list may be older, whichever server answers. "0": any will do.
  private var newest = "0"
  private var streamsLists = true
  /// Watches in a row that brought nothing but their failure.
  private var fruitless = 0
  /// When an expired version last was answered by a list at once.
  private var lastFreeList: Duration?
  private var attemptBegan = Duration.zero
  private var isSynced = false
  private var journalFailure: String?
  private var reach: ReachState?
  private var backoff = Backoff()
  private var random: any RandomNumberGenerator & Sendable

  init(
    _ kind: ObjectKind, connection: any APIServerConnection, surroundings: FollowerSurroundings = .real,
    journal: ObjectJournal? = nil, alarm: Alarm? = nil, progress: SourceProgress? = nil,
    emit: @escaping @Sendable (KindEvent) async -> Void
  ) {
    self.kind = kind
    self.connection = connection
    self.surroundings = surroundings
    self.journal = journal
    self.alarm = alarm
    self.progress = progress
    self.emit = emit
    random = surroundings.random()
  }

  /// Ends when its task is cancelled.
  mutating func run() async {
    await restore()
    while !Task.isCancelled {
      attemptBegan = surroundings.now()
      do {
        if let version {
          try await watch(ObjectRequest(kind: kind, form: .watch(after: version, seconds: watchSeconds())))
        } else if streamsLists {
          try await watch(ObjectRequest(kind: kind, form: .watchFromStart(version: newest, seconds: watchSeconds())))
        } else {
          try await list()
        }
      } catch {
        await recover(from: error)
      }
    }
  }

  /// Different for each, so that servers do not lose all their watches at once.
  private mutating func watchSeconds() -> Int { Int.random(in: 300...600, using: &random) }

  // MARK: Lists

  /// What an earlier agent knew. Lists take it from there: an agent that is restarted heals whatever went wrong between it and
  /// the API server, so no watch is taken up where another one ended.
  private mutating func restore() async {
    guard let reader = journal?.reader() else {
      // Servers need not have them: then nobody ever wrote of them.
      if journal != nil, kind == .serviceCIDR { await emit(.restored) }
      return
    }
    var batch: [WatchFrame] = []
    while let (frame, _, _) = reader.next() {
      switch frame {
      case .present(let tree), .gone(let tree):
        batch.append(frame)
        if !tree.resourceVersion.isEmpty { newest = tree.resourceVersion }
      case .bookmark(let version, _): newest = version
      case .failed: continue
      }
      guard batch.count == 256 else { continue }
      await tell(batch, isNews: false)
      batch = []
    }
    await tell(batch, isNews: false)
    await emit(.restored)
  }

  private mutating func beginList() {
    listNumber &+= 1
    keptAsTheyWere = []
    decoder.forgetStrings()
    journal?.beginList()
  }

  private mutating func list() async throws {
    beginList()
    var request = ObjectRequest(kind: kind, form: .list(version: newest, next: ""))
    while true {
      let answer = try await connection.get(request)
      var stream = ListStream(kind, answer.format)
      for try await piece in answer.body { await tell(try stream.append(piece).map { .present($0) }) }
      let progress = try stream.finish()
      guard progress.next.isEmpty else {
        request.form = .list(version: "", next: progress.next)
        continue
      }
      await finishList(at: progress.resourceVersion)
      return
    }
  }

  private mutating func finishList(at version: String) async {
    await tellWhatIsGone()
    (self.version, newest) = (version, version)
    progress?.note(kind, version)
    fruitless = 0
    journal?.endList(at: version, keeping: keptAsTheyWere)
    await checkJournal()
    decoder.forgetStrings()
    await set(.following)
    await becomeSynced()
  }

  /// All there is has been told: what was not among it is no more.
  private mutating func tellWhatIsGone() async {
    let gone = known.filter { $0.value != listNumber }.keys
    for key in gone { known[key] = nil }
    if !gone.isEmpty { await emit(.changes(gone.sorted().map { .delete(kind, $0) }, receivedAt: .now)) }
    for id in troubled.filter({ $0.value != listNumber }).keys.sorted() { await report([], of: id) }
  }

  private mutating func checkJournal() async {
    guard let journal, journal.failure != journalFailure else { return }
    journalFailure = journal.failure
    await emit(.journal(path: journal.path, failure: journalFailure))
  }

  private mutating func becomeSynced() async {
    guard !isSynced else { return }
    isSynced = true
    await emit(.synced)
  }

  // MARK: Watches

  private mutating func watch(_ request: ObjectRequest) async throws {
    decoder.forgetStrings()
    let answer = try await connection.get(request)
    var isListing = version == nil
    if isListing { beginList() } else { await set(.following) }
    fruitless += 1
    var stream = WatchStream(kind, answer.format)
    var hasHeard = false
    for try await piece in answer.body {
      let frames = try stream.append(piece)
      hasHeard = hasHeard || !frames.isEmpty
      // An error alone is no fruit.
      if frames.contains(where: { if case .failed = $0 { false } else { true } }) { fruitless = 0 }
      var pending: [WatchFrame] = []
      for frame in frames {
        switch frame {
        case .present(let tree), .gone(let tree):
          pending.append(frame)
          if !isListing { reached(tree.resourceVersion) }
        case .bookmark(let version, let isEndOfList):
          await tell(pending)
          pending = []
          if isListing, isEndOfList {
            isListing = false
            await finishList(at: version)
          } else if !isListing {
            reached(version)
            journal?.bookmark(version)
            await checkJournal()
          }
        case .failed(let status):
          await tell(pending)
          throw status
        }
      }
      await tell(pending)
      if !isListing { progress?.note(kind, newest) }
    }
    if isListing { throw WireProblem("the list ends before its end") }
    fruitless = 0
    // What could not be written down is, once there is room again.
    if journal?.failure != nil { version = nil }
    // Servers end watches, after minutes; one that does so at once would be asked without end.
    if !hasHeard, surroundings.now() - attemptBegan < .seconds(1) { throw ShortWatch() }
  }

  private mutating func reached(_ version: String) {
    guard !version.isEmpty else { return }
    (self.version, newest) = (version, version)
  }

  // MARK: Objects

  /// - Parameter isNews: whether the journal does not have it.
  private mutating func tell(_ frames: [WatchFrame], isNews: Bool = true) async {
    let receivedAt = ContinuousClock.now
    var changes: [ObjectChange] = []
    for frame in frames {
      switch frame {
      case .present(let tree):
        switch decoder.decode(tree, as: kind) {
        case .object(let object, let problems, _):
          known[object.key] = listNumber
          keptAsTheyWere.remove(object.key)
          changes.append(.upsert(object))
          if isNews { journal?.append(tree) }
          await report(problems, of: object.id)
        case .bad(let problem, let id):
          guard let id else { continue }
          // What it was stays, also when everything is listed anew.
          if let list = known[id.key] {
            if list != listNumber { keptAsTheyWere.insert(id.key) }
            known[id.key] = listNumber
          }
          await report([problem], of: id)
        case .list, .ignoredKind: continue
        }
      case .gone(let tree):
        guard let key = tree.key(of: kind) else { continue }
        known[key] = nil
        keptAsTheyWere.remove(key)
        changes.append(.delete(kind, key))
        if isNews { journal?.remove(tree) }
        await report([], of: ObjectID(kind, key))
      case .bookmark, .failed: continue
      }
    }
    if !changes.isEmpty { await emit(.changes(changes, receivedAt: receivedAt)) }
  }

  private mutating func report(_ problems: [ObjectProblem], of id: ObjectID) async {
    guard !problems.isEmpty || troubled[id] != nil else { return }
    troubled[id] = problems.isEmpty ? nil : listNumber
    await emit(.problems(problems, of: id))
  }

  // MARK: Failures

  private mutating func recover(from error: any Error) async {
    if Task.isCancelled { return }
    // Connections that somebody cuts after a while are no failures that add up.
    if surroundings.now() - attemptBegan > .seconds(30) { backoff = Backoff() }
    if fruitless >= Self.patience {
      // A version, or what comes after it, that no watch gets past.
      fruitless = 0
      version = nil
    }
    var asked: Duration?
    if let status = error as? APIStatus {
      asked = status.retryAfterSeconds.map { .seconds($0) }
      switch (status.code, status.reason) {
      case (410, _), (_, "Expired"), (_, "Gone"):
        // One list without waiting: a server that forgets at once is not to be asked at once.
        let wasWatching = version != nil
        version = nil
        let now = surroundings.now()
        if wasWatching, lastFreeList.map({ now - $0 > Backoff.forgiveness }) ?? true {
          lastFreeList = now
          return
        }
        // Neither is what it has at hand good enough.
        newest = ""
      case (400, _) where version == nil && streamsLists, (422, _) where version == nil && streamsLists:
        streamsLists = false
        return
      case (404, _) where kind == .serviceCIDR:
        // Other kinds every server has: somebody else answered, and knows nothing of what there is.
        beginList()
        await tellWhatIsGone()
        journal?.endList(at: "0")
        await set(.notServed)
        await becomeSynced()
      case (403, _) where kind == .serviceCIDR:
        // What it is for is not worth a node without a packet path.
        await becomeSynced()
      case _ where status.message.contains("Too large resource version"):
        // This server has seen less than another one, or its storage was set back: what it has now counts.
        version = nil
        newest = ""
      default: break
      }
    }
    if reach != .notServed { await set(.away(Self.text(error))) }
    let wait = backoff.fail(now: surroundings.now(), asked: asked, &random)
    if reach == .notServed {
      try? await surroundings.sleep(max(wait, .seconds(60)))
    } else if let alarm, asked == nil {
      await alarm.sleep(wait, by: surroundings.sleep)
    } else {
      try? await surroundings.sleep(wait)
    }
  }

  /// Fruitless watches before a list is made instead.
  private static let patience = 3

  private static func text(_ error: any Error) -> String {
    error is ShortWatch ? "it ends watches at once" : "\(error)"
  }

  private mutating func set(_ state: ReachState) async {
    guard reach != state else { return }
    if state == .following, case .away? = reach { alarm?.ring() }
    reach = state
    await emit(.reached(state))
  }
}

extension ManifestNode {
  /// The key of an object that may be wrong in every other way.
  func key(of kind: ObjectKind) -> ObjectKey? {
    guard let metadata = self["metadata"], let name = metadata["name"]?.textValue, !name.isEmpty else { return nil }
    return ObjectKey(namespace: kind.isNamespaced ? metadata["namespace"]?.textValue ?? "default" : "", name: name)
  }
}
