import ArgumentParser
import ClusterSource
import Foundation
import Hummingbird
import LocalAPI
import Logging
import NFTables
import Netlink
import ServiceLifecycle

let sluiceVersion = "0.1.0"

/// The node agent: balances Services and keeps this node's packet path equal to the cluster's objects.
@main
struct SluiceAgent: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "sluice-agent", abstract: "Programs Services of a Kubernetes cluster into this node's kernel.",
    version: sluiceVersion)

  @OptionGroup var options: AgentOptions
  @Flag(help: "Remove everything Sluice ever put into this node's kernel and files, then exit.") var cleanup = false

  @Flag(help: "Prepare this node for an agent with fewer rights: kernel settings, BPF file system, plugin; then exit.")
  var prepare = false
  @Option(help: "Where --prepare installs the CNI plugin that stands beside this program.") var cniBinDir: String?

  mutating func run() async throws {
    umask(0o077)
    guard cniBinDir == nil || prepare else { throw ValidationError("--cni-bin-dir: goes with --prepare") }
    if cleanup {
      try Cleanup.run(
        stateDir: options.stateDir ?? "/var/lib/sluice", runDir: options.runDir ?? "/run/sluice",
        cniConfDir: options.cniConfDir, bpffs: options.bpffs ?? SocketLB.defaultFolder)
      return
    }
    if prepare {
      try NodePreparation.run(
        stateDir: options.stateDir ?? "/var/lib/sluice", bpffs: options.bpffs ?? SocketLB.defaultFolder,
        cniBinDir: cniBinDir, logger: Logger(label: "sluice-agent"))
      return
    }
    let configuration = try AgentConfiguration(options) { flag, path in
      // Mounted ConfigMaps are links, which LocalFile does not follow.
      do { return Array(try Data(contentsOf: URL(fileURLWithPath: path))) } catch {
        throw ValidationError("\(flag): \(path): \(access(path, F_OK) == 0 ? "cannot be read" : "no such file")")
      }
    }
    AgentLog.level = configuration.logLevel.level
    let format = configuration.logFormat
    LoggingSystem.bootstrap { AgentLog(label: $0, format: format) }
    let logger = Logger(label: "sluice-agent")
    // Hummingbird tells of every start and stop of a listener; that is our log's noise.
    var httpLogger = Logger(label: "http")
    httpLogger.logLevel = .warning
    do {
      try await serve(configuration, logger, httpLogger)
    } catch let error as ExitCode {
      throw error
    } catch {
      logger.critical("stopped", metadata: ["error": "\(error)"])
      throw ExitCode(1)
    }
  }

  private func serve(_ configuration: AgentConfiguration, _ logger: Logger, _ httpLogger: Logger) async throws {
    for directory in [configuration.stateDir, configuration.runDir, configuration.runDir + "/endpoints"] {
      try LocalFile.createDirectories(directory)
    }
    if case .manifests(let folder) = configuration.source, !FileManager.default.fileExists(atPath: folder) {
      throw ValidationError("--manifests: \(folder): no such folder")
    }
    try AgentLock.take(configuration.runDir)
    do { try await program(configuration, logger, httpLogger) } catch {
      await TellNode.tell(ofEnd: error, configuration)
      throw error
    }
  }

  /// As the only agent of this node.
  private func program(_ configuration: AgentConfiguration, _ logger: Logger, _ httpLogger: Logger) async throws {
    try refuseOtherProxies(configuration)
    let reconciler = try Reconciler(configuration: configuration, logger: logger)
    for warning in NodeSettings(savedPath: configuration.stateDir + "/sysctls.json").apply() {
      logger.warning("kernel setting", metadata: ["error": "\(warning)"])
    }
    await reconciler.loadEndpoints()
    // A socket that a killed agent left would keep the new one from binding.
    try LocalFile.remove(configuration.socket)
    logger.info(
      "started",
      metadata: [
        "version": "\(sluiceVersion)", "node": "\(configuration.nodeName)",
        "engine": "\(configuration.engine.rawValue)",
        "source": "\(configuration.source)",
      ])
    let group = ServiceGroup(
      configuration: .init(
        services: [
          .init(service: FollowSource(reconciler: reconciler, configuration: configuration)),
          .init(service: Clockwork(reconciler: reconciler)),
          .init(service: FollowAddresses(reconciler: reconciler)),
          .init(service: CountMaps(reconciler: reconciler)),
          .init(service: PublishNode(reconciler: reconciler, configuration: configuration, logger: logger)),
          .init(service: TellNode(reconciler: reconciler, configuration: configuration, logger: logger)),
          .init(service: HTTPServers.local(reconciler, socket: configuration.socket, httpLogger)),
          .init(service: HTTPServers.health(reconciler, configuration.healthzAddress, httpLogger)),
          .init(service: HTTPServers.metrics(reconciler, configuration.metricsAddress, httpLogger)),
          .init(service: FollowPolicyLog(reconciler: reconciler, logger: logger)),
        ], gracefulShutdownSignals: [.sigterm, .sigint], logger: httpLogger))
    try await group.run()
    await reconciler.stopHealthChecks()
    logger.info("stopped; the kernel keeps what it has")
  }

  private func refuseOtherProxies(_ configuration: AgentConfiguration) throws {
    let found = try KubeProxyRemains.find()
    guard !found.isEmpty, configuration.migratesFrom != .kubeProxy || found.hasVirtualServers else { return }
    let way =
      found.hasVirtualServers
      ? "remove what it has in the kernel (kube-proxy --cleanup)"
      : "start with --migrate-from kube-proxy, which takes its connections over and removes its rules"
    throw ValidationError(
      "kube-proxy runs, or ran, on this node: \(found.names.joined(separator: ", ")). Stop it, then \(way).")
  }
}

/// Hands what the cluster tells to the reconciler.
private struct FollowSource: Service {
  let reconciler: Reconciler
  let configuration: AgentConfiguration

  func run() async throws {
    switch configuration.source {
    case .manifests(let folder):
      for await event in ManifestFolder(path: folder).events().cancelOnGracefulShutdown() {
        await reconciler.handle(event)
      }
      // The stream ends by itself only when it could not begin.
      try await gracefulShutdown()
    case .apiServer(let access, _):
      let folder = AgentConfiguration.objectFolder(stateDir: configuration.stateDir)
      try LocalFile.createDirectories(folder)
      await cancelWhenGracefulShutdown {
        await APIServerSource(access: access, journalFolder: folder, progress: reconciler.progress).run {
          await reconciler.handle($0)
        }
      }
    }
  }
}

/// Gives the reconciler its turns.
private struct Clockwork: Service {
  let reconciler: Reconciler

  func run() async throws {
    for await _ in AsyncTicks(every: .milliseconds(20)).cancelOnGracefulShutdown() {
      await reconciler.tickIfDue()
    }
  }
}

/// Counts what BPF maps have, beside everything else.
private struct CountMaps: Service {
  let reconciler: Reconciler

  func run() async throws {
    guard reconciler.usesMaps else { return try await gracefulShutdown() }
    for await _ in AsyncTicks(every: .seconds(1)).cancelOnGracefulShutdown() {
      // Before there is anything there is nothing to count.
      if await reconciler.isSynced {
        await reconciler.mapCensus.countIfDue()
        for map in await reconciler.mapCensus.takeCrowdedCaches() { await reconciler.growMap(map) }
      }
    }
  }
}

/// Follows this node's own addresses: NodePorts listen on them.
private struct FollowAddresses: Service {
  let reconciler: Reconciler

  func run() async throws {
    let monitor = try RouteMonitor([.addresses])
    let events = AsyncStream<Void> { continuation in
      // A thread of its own: waiting for the kernel must not hold one of the pool's.
      let thread = Thread {
        while true {
          // Anything but "nothing came" is a reason to look: announcements, lost ones, a failure.
          let news = try? monitor.next(timeoutMilliseconds: 1000)
          if news?.isEmpty == true { continue }
          if case .terminated = continuation.yield(()) { return }
          if news == nil { sleep(1) }
        }
      }
      thread.start()
    }
    for await _ in events.cancelOnGracefulShutdown() { await reconciler.addressesMayHaveChanged() }
  }
}

/// Writes what the plugin and the runtime need once the agent serves, and again when it changes.
private struct PublishNode: Service {
  let reconciler: Reconciler
  let configuration: AgentConfiguration
  let logger: Logger

  func run() async throws {
    var published: NodeFacts?
    var ticks = 0
    for await _ in AsyncTicks(every: .milliseconds(50)).cancelOnGracefulShutdown() {
      // The facts are read from the kernel with a listing of all addresses: often only until the plugin can work.
      ticks += 1
      guard published == nil || ticks % 20 == 0 else { continue }
      guard let facts = await reconciler.nodeFacts(), facts != published else { continue }
      do {
        try CNIConfigFile.publish(facts, runDir: configuration.runDir)
        if let directory = configuration.cniConfDir {
          try CNIConfigFile.install(
            in: directory,
            CNIConfigFile.content(
              socket: configuration.socket, runDir: configuration.runDir, stateDir: configuration.stateDir))
        }
        published = facts
      } catch {
        logger.error("CNI config not written", metadata: ["error": "\(error)"])
      }
    }
  }
}

/// A steady beat.
struct AsyncTicks: AsyncSequence, Sendable {
  let every: Duration
  init(every: Duration) { self.every = every }

  struct Iterator: AsyncIteratorProtocol {
    let every: Duration
    mutating func next() async -> Void? {
      do {
        try await Task.sleep(for: every)
        return ()
      } catch {
        return nil
      }
    }
  }
  func makeAsyncIterator() -> Iterator { Iterator(every: every) }
}
