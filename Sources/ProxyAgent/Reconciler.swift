import BPFLoader
import CLinux
import ClusterSource
import DataplaneModel
import Glibc
import KubernetesObjects
import LocalAPI
import Logging
import NFTables
import Netlink
import NetworkTypes
import PodFilters
import PolicyCompiler
import ServiceCompiler

/// The one writer of this node's packet path: takes what sources report, keeps the tables, and makes the kernel equal.
///
/// Level-triggered: a change is compiled from the state as it is, so that repeated or late reports do no harm. Until the
/// source has been read once nothing in the kernel is touched.
actor Reconciler {
  let configuration: AgentConfiguration
  /// As asked for, with more room where that was not enough.
  var mapBounds: MapBounds
  let logger: Logger
  let clock = ContinuousClock()
  let state: ClusterState
  var compiler: ServiceCompiler<NumberJournal>
  var policies: PolicyCompiler
  var tables = Tables()
  var engine: any NodeEngine
  /// nil: all Services by packets.
  var sockets: SocketBalancer?
  let socketSweeper: SocketSweeper
  var socketsNeedResync = false
  var socketResyncDelay = Duration.milliseconds(100)
  var nextSocketResync: ContinuousClock.Instant
  var socketFailure: String?
  var routes: NodeRoutes
  let addresses: RouteSocket
  /// nil where the kernel has no nf_tables.
  let senderChains: SenderChains?
  var senderWarned = false
  let sweeper: FlowSweeper
  let mapCensus: MapCensus
  let records: EndpointRecordStore
  let healthChecks: HealthCheckServers
  var endpoints: [String: EndpointRecord] = [:]
  var metrics = AgentMetrics()

  /// Services that changed before the first sync, or whose programming failed.
  var isSynced = false
  /// Which state of the compiler's health checks is served.
  var servedHealthChecks = 0
  /// What an agent with another engine left in force is no more.
  var servesAlone = false
  /// UDP flows of the time before this agent have been judged.
  var hasSwept = false
  var needsResync = false
  var resyncDelay = Duration.milliseconds(100)
  var nextResync: ContinuousClock.Instant
  var lastVerified: ContinuousClock.Instant?
  var lastTurn: ContinuousClock.Instant
  var oldestPending: ContinuousClock.Instant?
  var removalsDue: ContinuousClock.Instant?
  var revision = 0
  var problems: [String: [ObjectProblem]] = [:]
  /// When the first object was heard of.
  var firstHeard: ContinuousClock.Instant?
  var ignoredKinds: [String: Int] = [:]
  /// Whether the source tells of changes, and since when it does or does not; nil: nothing has been heard of that.
  var reach: (state: SourceReach, since: ContinuousClock.Instant)?
  /// Of an API server's objects.
  nonisolated let progress = SourceProgress()
  var lastFailure: String?
  /// How often the kernel was found without what it had been given, other than after a failure of ours.
  var foreignChanges = 0
  /// The policies of each, as they were told of.
  var toldClosedSubjects: Set<String> = []
  /// Who may change our tables in the kernel, as of the last resync.
  var tableAccess: TableAccess?
  var nodeWarned = false
  let startedAt = time(nil)
  var nextTick: ContinuousClock.Instant?
  var nextLook: ContinuousClock.Instant?
  /// Of the program's pages.
  var nextRelease = ContinuousClock.now
  /// Every address of this node but loopback's and link-local ones.
  var ownAddresses: Set<IPAddress> = []
  /// What clauses of policies mean, for counters and events, also some time after they are out of force.
  var clauses = ClauseHistory()
  /// Packets that were dropped, or would be.
  let events = EventRing()
  var followsLog = false
  /// Those of `dpctl monitor` that asked for kinds of events that are told on request only.
  var listeners: [PolicyEvent.Kind: Int] = [:]
  /// ADDs that wait for their Pod object.
  var changeWaiters: [(deadline: ContinuousClock.Instant, continuation: CheckedContinuation<Void, Never>)] = []
  var reportedConflicts: Set<String> = []

  init(configuration: AgentConfiguration, logger: Logger) throws {
    self.configuration = configuration
    mapBounds = configuration.mapBounds
    self.logger = logger
    state = ClusterState(ownNodeName: configuration.nodeName)
    let (engine, sockets) = try PacketPath.start(configuration, bounds: configuration.mapBounds)
    (self.engine, self.sockets) = (engine, sockets)
    // An agent that was killed leaves its listeners' wishes behind.
    try (engine as? PacketEngine)?.listen(to: [])
    if let lack = PacketPath.lack(configuration) { logger.warning("\(lack)") }
    let numbering = try NumberJournal(
      path: configuration.stateDir + "/service-numbers", floor: try engine.largestServiceNumber())
    compiler = ServiceCompiler(
      nodeName: configuration.nodeName, numbering: numbering, slotsInForce: try engine.slotsInForce())
    let inForce = try engine.identitiesInForce()
    policies = PolicyCompiler(
      inForce: IdentitiesInForce(
        addresses: inForce.addresses, atoms: inForce.atoms, largestSerial: inForce.largestSerial))
    routes = try NodeRoutes()
    addresses = try RouteSocket()
    senderChains = try FilterSocket.whereThereIs().map(SenderChains.init)
    socketSweeper = SocketSweeper(logger: logger)
    mapCensus = MapCensus(folder: configuration.bpffs, logger: logger)
    sweeper = FlowSweeper(
      conntrack: try ConntrackSocket(), packets: (engine as? PacketEngine)?.flows, logger: logger)
    records = EndpointRecordStore(directory: configuration.runDir + "/endpoints")
    healthChecks = HealthCheckServers(logger: logger)
    nextResync = clock.now
    nextSocketResync = clock.now
    lastTurn = clock.now
  }

  // MARK: Inputs

  func handle(_ event: SourceEvent) {
    switch event {
    case .problems(let found, let place):
      problems[place] = found.isEmpty ? nil : found
      for problem in found { logger.warning("object ignored", metadata: ["problem": "\(problem)"]) }
      if found.isEmpty { logger.info("no problem left", metadata: ["place": "\(place)"]) }
    case .ignoredKinds(let kinds):
      ignoredKinds = kinds
    case .synced(let isRemembered):
      if isRemembered {
        logger.warning("the API server has not answered yet: what was known when an agent last ran is put in force")
      }
      firstSync()
    case .reach(let reach):
      noteReach(reach)
    case .changes(let changes, let receivedAt):
      firstHeard = firstHeard ?? receivedAt
      metrics.lastQueued = Self.wallClock()
      var effect = ChangeEffect()
      var triggered: [Int64] = []
      for change in changes {
        if case .upsert(.endpointSlice(let slice)) = change, let time = slice.lastChangeTriggerTime {
          triggered.append(time)
        }
        switch change.id.kind {
        case .service: metrics.serviceChanges += 1
        case .endpointSlice: metrics.endpointChanges += 1
        default: break
        }
        effect.formUnion(state.apply(change))
      }
      guard isSynced else { return }
      oldestPending = oldestPending ?? receivedAt
      program(effect, receivedAt: receivedAt, triggered: triggered)
      if !effect.pods.isEmpty { wakeWaiters { _ in true } }
    }
  }

  /// A pod was attached: returns once its packets are judged by every policy known. Throws what the plugin hands to the
  /// runtime: until then nothing gets in or out.
  func publish(_ record: EndpointRecord) async throws {
    guard isSynced else { throw LocalAPIRefusal("the agent has not read the cluster's objects yet") }
    if try await waitForPod(of: record),
      case .success(nil) = Result(catching: { try addresses.link(named: record.hostInterface) })
    {
      // Whoever waited has given up.
      throw LocalAPIRefusal("the pod's device \(record.hostInterface) has gone")
    }
    try requireFreeHostPorts(record)
    do { try checkSender(of: record) } catch {
      throw LocalAPIRefusal("the kernel refused the sender's check: \(error)")
    }
    let earlier = endpoints.updateValue(record, forKey: record.fileName)
    try programEndpoints("endpoint attached", record, earlierPorts: earlier?.portMappings ?? [])
    if let port = record.portMappings.map(\.hostPort).first(where: { !compiler.isServed(hostPort: $0) }) {
      throw LocalAPIRefusal("host port \(port) has no number: \(compiler.numbering.failure ?? "")")
    }
  }

  /// A runtime makes a sandbox from a Pod object that it has seen; we may see it a moment later.
  ///
  /// - Returns: whether time has passed meanwhile.
  private func waitForPod(of record: EndpointRecord) async throws -> Bool {
    guard let key = record.podKey else { return false }
    let deadline = clock.now + .milliseconds(configuration.podWait)
    var hasWaited = false
    while true {
      let pod = state.pod(key)
      let uid = record.podUID ?? ""
      if let pod, uid.isEmpty || pod.uid.isEmpty || pod.uid == uid { return hasWaited }
      guard clock.now < deadline else {
        let known = pod.map { "the agent knows the one with uid \($0.uid)" } ?? "the agent does not know it"
        throw LocalAPIRefusal("Pod \(key) with uid \(uid): \(known) after \(configuration.podWait) ms")
      }
      hasWaited = true
      await withCheckedContinuation { changeWaiters.append((deadline, $0)) }
    }
  }

  func wakeWaiters(where isMeant: (ContinuousClock.Instant) -> Bool) {
    guard !changeWaiters.isEmpty else { return }
    let meant = changeWaiters.filter { isMeant($0.deadline) }
    changeWaiters.removeAll { isMeant($0.deadline) }
    for waiter in meant { waiter.continuation.resume() }
  }

  func unpublish(containerID: String, interfaceName: String) throws {
    let gone = endpoints.values.filter { $0.containerID == containerID && $0.interfaceName == interfaceName }
    for record in gone {
      endpoints[record.fileName] = nil
      if isSynced { try programEndpoints("endpoint detached", record, isGone: true) }
    }
    // Also where nobody has told of it.
    try forgetSender(device: AttachmentName(containerID, interfaceName).hostInterface)
  }

  private func programEndpoints(
    _ what: String, _ record: EndpointRecord, earlierPorts: [PortMapping] = [], isGone: Bool = false
  ) throws {
    let start = clock.now
    do {
      var delta = policies.compile(
        ChangeEffect(), endpoints: [record.hostInterface: isGone ? LocalPod?.none : LocalPod(record)], in: state,
        tables: tables)
      delta.takeNode(from: nodeDelta())
      compileHostPorts(of: record.portMappings + earlierPorts, into: &delta)
      // Nothing differs where an ADD is repeated, but the device can be another by the same name.
      if !isGone, delta.endpoints[record.hostInterface] == nil, let same = tables.node.endpoints[record.hostInterface] {
        delta.endpoints[record.hostInterface] = Change(old: same, new: same)
      }
      let report = try apply(delta)
      logger.info(
        "\(what)",
        metadata: [
          "pod": "\(record.podNamespace ?? "")/\(record.podName ?? record.containerID)",
          "interface": "\(record.hostInterface)", "took": "\(milliseconds(clock.now - start))",
          "messages": "\(report.messages)",
        ])
    } catch let error as RepairUnderWay {
      throw error
    } catch {
      failed(error)
      throw LocalAPIRefusal("the kernel refused the endpoint: \(error)")
    }
  }
}

extension EndpointRecord {
  /// The pod that the runtime named; nil where it spoke of none.
  var podKey: ObjectKey? {
    guard let podNamespace, let podName else { return nil }
    return ObjectKey(namespace: podNamespace, name: podName)
  }
}

extension LocalPod {
  init(_ record: EndpointRecord) {
    self.init(
      interface: record.hostInterface, pod: record.podKey, uid: record.podUID, addresses: record.addresses)
  }
}

/// The kernel is about to be read back and mended; nothing is programmed before that.
struct RepairUnderWay: Error, CustomStringConvertible {
  var description: String { "a repair of the kernel is under way, try again" }
}

/// What the local API answers with an error.
struct LocalAPIRefusal: Error, CustomStringConvertible {
  var description: String
  init(_ description: String) { self.description = description }
}

func seconds(_ duration: Duration) -> Double {
  Double(duration.components.seconds) + Double(duration.components.attoseconds) / 1e18
}

func milliseconds(_ duration: Duration) -> String {
  let thousandths = Int(seconds(duration) * 1_000_000)
  let fraction = String(thousandths % 1000)
  return "\(thousandths / 1000).\(String(repeating: "0", count: 3 - fraction.count) + fraction)ms"
}
