import Glibc
import KubernetesObjects
import LocalAPI
import Synchronization

/// A Kubernetes API server, followed: all kinds listed and watched, what is heard of each joined into one account.
///
/// Nothing is lost to a server that is away: what was known stays in force, also across a restart where a folder for it is
/// given. Other than by `insecure-skip-tls-verify`, no server is believed that cannot prove who it is.
public struct APIServerSource: Sendable {
  public var access: APIServerAccess
  /// Where what is known outlives the agent; nil: nowhere.
  public var journalFolder: String?
  /// How long servers may take to answer, at the start, before what an earlier agent knew is put in force.
  public var patience = Duration.seconds(5)
  public var kinds = ObjectKind.allCases
  public let progress: SourceProgress

  public init(access: APIServerAccess, journalFolder: String? = nil, progress: SourceProgress = SourceProgress()) {
    self.access = access
    self.journalFolder = journalFolder
    self.progress = progress
  }

  /// What earlier agents knew is forgotten.
  public static func removeJournals(in folder: String) throws { try ObjectJournal.removeAll(in: folder) }

  /// Follows until the task is cancelled.
  ///
  /// - Parameter handle: told one event of a kind after the other; while it is busy nothing more is read from the servers.
  public func run(_ handle: @escaping @Sendable (SourceEvent) async -> Void) async {
    var surroundings = FollowerSurroundings.real
    if let hurry = Self.hurry { surroundings.sleep = { try await Task.sleep(for: $0 / hurry) } }
    await follow(connection: APIServerClient(access), surroundings: surroundings, handle)
  }

  /// How many times shorter it waits, for tests that have no hours: a server whose agents all did this would not come back.
  private static var hurry: Double? {
    getenv("SLUICE_TEST_HURRY").flatMap { Double(String(cString: $0)) }.map { max($0, 1) }
  }

  func follow(
    connection: any APIServerConnection, surroundings: FollowerSurroundings,
    _ handle: @escaping @Sendable (SourceEvent) async -> Void
  ) async {
    let joint = KindJoint(kinds: kinds, handle)
    let alarm = Alarm()
    await withTaskGroup(of: Void.self) { group in
      for kind in kinds {
        group.addTask {
          let journal = journalFolder.map { ObjectJournal(folder: $0, kind: kind, cluster: access.clusterName) }
          var follower = KindFollower(
            kind, connection: connection, surroundings: surroundings, journal: journal, alarm: alarm,
            progress: progress
          ) { await joint.take($0, of: kind) }
          await follower.run()
        }
      }
      group.addTask {
        try? await surroundings.sleep(patience)
        if !Task.isCancelled { await joint.losePatience() }
      }
    }
  }
}

extension APIServerAccess {
  /// Tells clusters apart on disk: each has authorities of its own.
  var clusterName: String {
    var text = servers.map(\.description).joined(separator: ",")
    if case .authorities(let material) = trust, let bytes = try? material.read("certificate-authority") {
      text = String(decoding: bytes, as: UTF8.self)
    }
    return StableHash.hex128(text)
  }
}

/// Makes one account of several kinds.
private actor KindJoint {
  private let handle: @Sendable (SourceEvent) async -> Void
  private let kinds: [ObjectKind]
  private var restored: Set<ObjectKind> = []
  private var synced: Set<ObjectKind> = []
  private var reach: [ObjectKind: ReachState] = [:]
  private var told: SourceReach?
  private var isTelling = false
  private var isSynced = false
  private var isImpatient = false

  init(kinds: [ObjectKind], _ handle: @escaping @Sendable (SourceEvent) async -> Void) {
    (self.kinds, self.handle) = (kinds, handle)
  }

  func take(_ event: KindEvent, of kind: ObjectKind) async {
    switch event {
    case .changes(let changes, let receivedAt): await handle(.changes(changes, receivedAt: receivedAt))
    case .problems(let problems, let id): await handle(.problems(problems, place: "\(id)"))
    case .journal(let path, let failure):
      let problem = failure.map {
        ObjectProblem(
          file: path, line: 0, object: "", field: "", message: "what is known would not outlive the agent: \($0)")
      }
      await handle(.problems(problem.map { [$0] } ?? [], place: path))
    case .restored:
      restored.insert(kind)
      await tellSynced()
    case .synced:
      synced.insert(kind)
      await tellSynced()
    case .reached(let state):
      reach[kind] = state
      await tellReach()
    }
  }

  func losePatience() async {
    isImpatient = true
    await tellSynced()
  }

  private func tellSynced() async {
    let known = isImpatient ? synced.union(restored) : synced
    guard !isSynced, kinds.allSatisfy(known.contains) else { return }
    isSynced = true
    await handle(.synced(isRemembered: synced.count < kinds.count))
  }

  /// What is wrong with one kind is wrong with all of it: policies without the pods' labels mean nothing.
  private func tellReach() async {
    // One tells, in order, and goes on until what it told last is so.
    guard !isTelling else { return }
    isTelling = true
    defer { isTelling = false }
    while let now = joint, now != told {
      told = now
      await handle(.reach(now))
    }
  }

  private var joint: SourceReach? {
    guard reach.count == kinds.count else { return nil }
    var reasons: [String] = []
    for kind in kinds {
      guard case .away(let reason)? = reach[kind] else { continue }
      // Mostly it is the same for all.
      if !reasons.contains(where: { $0.hasSuffix(reason) }) { reasons.append("\(kind.plural): \(reason)") }
    }
    return reasons.isEmpty ? .following : .away(reasons.joined(separator: "; "))
  }
}
