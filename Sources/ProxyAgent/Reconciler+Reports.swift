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
import ServiceCompiler

/// What metrics, status and `dpctl` ask for.
extension Reconciler {
  func reportConflicts() {
    let now = Set(compiler.conflicts(nodePortAddresses: tables.node.nodePortAddresses).map { "\($0)" })
    for conflict in now.subtracting(reportedConflicts) {
      logger.warning("claim lost", metadata: ["claim": "\(conflict)"])
    }
    reportedConflicts = now
    for (service, ports) in compiler.unnumbered {
      logger.error(
        "service ports not programmed",
        metadata: ["service": "\(service)", "ports": "\(ports)", "reason": "\(compiler.numbering.failure ?? "")"])
    }
  }

  static func wallClock() -> Double {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return Double(now.tv_sec) + Double(now.tv_nsec) / 1e9
  }

  /// The loop turns, and nothing has waited longer than 30 s.
  var isAlive: Bool {
    guard clock.now - lastTurn < .seconds(30) else { return false }
    return oldestPending.map { clock.now - $0 < .seconds(30) } ?? true
  }
  var isReady: Bool { isSynced && !needsResync && hasSwept }
  var condition: AgentCondition {
    AgentCondition(
      isSynced: isSynced && !needsResync, failure: lastFailure ?? socketFailure, repairs: foreignChanges)
  }

  /// False as well while the Node is going away.
  var isHealthy: Bool {
    let node = state.ownNode
    return isAlive && node?.isBeingDeleted != true
      && node?.taintKeys.contains("ToBeDeletedByClusterAutoscaler") != true
  }

  func metricsText() async -> String {
    var metrics = metrics
    metrics.staleFlowsRemoved = await sweeper.removed
    metrics.withoutLocalEndpoint = compiler.withoutLocalEndpoint.mapValues(\.count)
    metrics.gauges = [
      ("sluice_services", "Services in the tables.", Double(Set(compiler.names.values.map(\.service)).count)),
      ("sluice_frontends", "Frontends in the tables.", Double(tables.services.frontends.count)),
      (
        "sluice_backends", "Backends in the tables, each counted once per set.",
        Double(tables.services.sets.values.reduce(0) { $0 + $1.backends.count })
      ),
      ("sluice_local_endpoints", "Pods of this node.", Double(endpoints.count)),
      ("sluice_problems", "Objects that are ignored because they are wrong.", Double(problems.values.joined().count)),
      (
        "sluice_claim_conflicts", "Claims to addresses and ports that lost.",
        Double(compiler.conflicts(nodePortAddresses: tables.node.nodePortAddresses).count)
      ),
      (
        "sluice_tables_owned", "1 where nobody else can change our nftables tables.",
        tableAccess == .owned ? 1 : 0
      ),
      (
        "sluice_source_following",
        "1 while the source of objects tells of changes, 0 while what it told last is in force.",
        reach.map { $0.state == .following ? 1 : 0 } ?? (isSynced ? 1 : 0)
      ),
      ("sluice_revision", "Number of the tables' last change.", Double(revision)),
    ]
    addPolicyMetrics(to: &metrics)
    metrics.families += await mapCensus.metrics()
    return metrics.text()
  }

  func status() async -> JSONValue {
    let fullMaps = await mapCensus.full.map { fill -> JSONValue in
      [
        "name": .string(fill.map), "entries": .int(Int64(fill.live)), "maxEntries": .int(Int64(fill.maximum)),
        "fillPercent": .int(Int64(fill.percent)),
      ]
    }
    return [
      "apiVersion": "sluice.dev/v1",
      "agent": [
        "version": .string(sluiceVersion), "pid": .int(Int64(getpid())), "node": .string(configuration.nodeName),
        "uptimeSeconds": .int(Int64(time(nil) - startedAt)), "residentBytes": .int(Int64(AgentMetrics.residentBytes)),
      ],
      "source": sourceStatus(),
      "dataplane": [
        "engine": .string(configuration.engine.rawValue), "ok": .bool(isReady), "revision": .int(Int64(revision)),
        "verifiedSecondsAgo": lastVerified.map { .int((clock.now - $0).components.seconds) } ?? .null,
        "tables": tableAccess.map { .string($0.rawValue) } ?? .null,
        "fullMaps": .array(fullMaps), "socketFailure": socketFailure.map { .string($0) } ?? .null,
        "lastFailure": lastFailure.map { .string($0) } ?? .null, "repairs": .int(Int64(metrics.repairs)),
      ],
      "services": [
        "services": .int(Int64(Set(compiler.names.values.map(\.service)).count)),
        "frontends": .int(Int64(tables.services.frontends.count)),
        "backends": .int(Int64(tables.services.sets.values.reduce(0) { $0 + $1.backends.count })),
        "conflicts": .array(
          compiler.conflicts(nodePortAddresses: tables.node.nodePortAddresses).map { .string("\($0)") }),
      ],
      "endpoints": .int(Int64(endpoints.count)),
    ]
  }

  private func sourceStatus() -> JSONValue {
    let problemList = problems.values.joined().map { JSONValue.string("\($0)") }.sorted { "\($0)" < "\($1)" }
    var status: JSONObject = [
      "kind": .string(configuration.source.kind), "path": .string(configuration.source.description),
      "synced": .bool(isSynced), "problems": .array(problemList),
      "ignoredKinds": .object(
        JSONObject(ignoredKinds.sorted { $0.key < $1.key }.map { ($0.key, .int(Int64($0.value))) })),
    ]
    let versions = progress.resourceVersions
    if !versions.isEmpty {
      status["resourceVersions"] = .object(
        JSONObject(versions.map { ($0.key, .string($0.value)) }.sorted { $0.0 < $1.0 }))
    }
    if let reach {
      let seconds = JSONValue.int((clock.now - reach.since).components.seconds)
      switch reach.state {
      case .following: status["followingSeconds"] = seconds
      case .away(let reason):
        status["awaySeconds"] = seconds
        status["awayReason"] = .string(reason)
      }
    }
    return .object(status)
  }

  /// A source comes and goes: in force stays what it told.
  func noteReach(_ state: SourceReach) {
    let before = reach?.state
    // One reason after the other is one absence.
    let since = reach.flatMap { $0.state != .following && state != .following ? $0.since : nil }
    reach = (state, since ?? clock.now)
    switch state {
    case .following: logger.info("API server", metadata: ["reach": "following"])
    case .away(let reason):
      var metadata: Logger.Metadata = ["reason": "\(reason)"]
      if !isSynced, configuration.source.isBehindService {
        metadata["hint"] = """
          this address is a Service's, which only this agent makes work on this node: give the API servers' own addresses by \
          --api-server
          """
      }
      // Its reasons may alternate for hours.
      let isNews = before == nil || before == .following
      logger.log(
        level: isNews ? .warning : .debug, "API server does not answer; what is in force stays", metadata: metadata)
    }
  }

  /// Every frontend with its backends, by service.
  func services(namespace: String?, name: String?) -> JSONValue {
    var rows: [(sort: String, json: JSONValue)] = []
    for (key, frontend) in tables.services.frontends {
      guard let port = compiler.names[frontend.service], namespace == nil || port.service.namespace == namespace,
        name == nil || port.service.name == name
      else { continue }
      func backends(_ scope: BackendScope) -> JSONValue {
        let id = BackendSetID(service: frontend.service, scope: scope, family: key.destination.family)
        let set = tables.services.sets[id]
        return [
          "policy": .string(scope.description),
          "whenEmpty": .string(set?.emptyAction == .drop ? "drop" : "reject"),
          "affinitySeconds": set?.affinityTimeout.map { .int(Int64($0)) } ?? .null,
          "loadBalancing": .string(set?.maglev == nil ? "random" : "maglev"),
          "addresses": .array((set?.backends ?? []).map { .string($0.description) }),
        ]
      }
      let row: JSONValue = [
        "namespace": .string(port.service.namespace), "service": .string(port.service.name),
        "port": .string(port.port), "protocol": .string(port.proto.kubernetesName),
        "kind": .string(frontend.kind.description), "address": .string(key.destination.description),
        "portNumber": .int(Int64(key.port.number)), "id": .int(Int64(frontend.service.rawValue)),
        "sourceRanges": frontend.sourceRanges.map { .array($0.map { .string($0.description) }) } ?? .null,
        "fromNode": backends(frontend.nodeScope), "fromOutside": backends(frontend.outsideScope),
      ]
      rows.append(("\(port) \(frontend.kind.rawValue) \(key)", row))
    }
    return [
      "apiVersion": "sluice.dev/v1", "items": .array(rows.sorted { $0.sort < $1.sort }.map(\.json)),
    ]
  }

  /// Differences between the objects, the tables and the kernel; empty when all three agree.
  func serviceDiff() throws -> JSONValue {
    var differences: [JSONValue] = []
    func note(_ where: String, _ kind: String, _ object: String) {
      differences.append(["between": .string(`where`), "kind": .string(kind), "object": .string(object)])
    }
    for object in compiler.differences(in: state, from: tables) { note("objects and agent", "different", object) }
    for drift in try engine.verify(tables) { note("agent and kernel", drift.kind.rawValue, drift.object) }
    count(engine.takeReport())
    do {
      for drift in try sockets?.verify(tables) ?? [] { note("agent and sockets", drift.kind.rawValue, drift.object) }
    } catch {
      note("agent and sockets", "unreadable", "\(error)")
    }
    giveMemoryBack()
    return ["apiVersion": "sluice.dev/v1", "differences": .array(differences)]
  }

  func endpointList() -> JSONValue {
    [
      "apiVersion": "sluice.dev/v1",
      "items": .array(endpoints.values.sorted { $0.hostInterface < $1.hostInterface }.map(\.json)),
    ]
  }

  /// What the plugin and the CNI config need of the Node object; nil until it is there with pod ranges.
  func nodeFacts() -> NodeFacts? {
    guard isSynced, let node = state.ownNode, !node.podCIDRs.isEmpty else { return nil }
    return NodeFacts(node: node.name, podCIDRs: node.podCIDRs, mtu: uplinkMTU(node))
  }

  /// The MTU of the device that has the node's address.
  func uplinkMTU(_ node: Node) -> Int? {
    guard let assigned = try? addresses.addresses().first(where: { node.internalIPs.contains($0.address.address) }),
      let link = try? addresses.link(index: assigned.interfaceIndex)
    else { return nil }
    return link.mtu
  }

  func stopHealthChecks() { healthChecks.update([:]) }
}
