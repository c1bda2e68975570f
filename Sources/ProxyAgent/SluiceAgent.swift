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

  mutating func run() async throws {
    umask(0o077)
    if cleanup {
      try Cleanup.run(
        stateDir: options.stateDir ?? "/var/lib/sluice", runDir: options.runDir ?? "/run/sluice",
        cniConfDir: options.cniConfDir, bpffs: options.bpffs ?? SocketLB.defaultFolder)
      return
    }
    let configuration = try AgentConfiguration(options) { path in
      guard let bytes = try LocalFile.read(path) else { throw ValidationError("--config: \(path): no such file") }
      return bytes
    }
    let level = Logger.Level(rawValue: configuration.logLevel.rawValue) ?? .info
    LoggingSystem.bootstrap { label in
      var handler = StreamLogHandler.standardError(label: label)
      handler.logLevel = level
      return handler
    }
    let logger = Logger(label: "sluice-agent")
    // Hummingbird tells of every start and stop of a listener; that is our log's noise.
    var httpLogger = Logger(label: "http")
    httpLogger.logLevel = max(level, .warning)
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
    guard FileManager.default.fileExists(atPath: configuration.manifests) else {
      throw ValidationError("--manifests: \(configuration.manifests): no such folder")
    }
    try AgentLock.take(configuration.runDir)
    try refuseOtherProxies()
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
        "manifests": "\(configuration.manifests)",
      ])
    let group = ServiceGroup(
      configuration: .init(
        services: [
          .init(service: FollowSource(reconciler: reconciler, configuration: configuration)),
          .init(service: Clockwork(reconciler: reconciler)),
          .init(service: FollowAddresses(reconciler: reconciler)),
          .init(service: PublishNode(reconciler: reconciler, configuration: configuration, logger: logger)),
          .init(service: HTTPServers.local(reconciler, socket: configuration.socket, httpLogger)),
          .init(service: HTTPServers.health(reconciler, configuration.healthzAddress, httpLogger)),
          .init(service: HTTPServers.metrics(reconciler, configuration.metricsAddress, httpLogger)),
          .init(service: FollowPolicyLog(reconciler: reconciler, logger: logger)),
        ], gracefulShutdownSignals: [.sigterm, .sigint], logger: httpLogger))
    try await group.run()
    await reconciler.stopHealthChecks()
    logger.info("stopped; the kernel keeps what it has")
  }

  /// Two proxies on one node answer for the same addresses.
  private func refuseOtherProxies() throws {
    let found = try NFTablesEngine().otherProxies()
    guard found.isEmpty else {
      throw ValidationError(
        "kube-proxy runs, or ran, on this node: \(found.joined(separator: ", ")). "
          + "Stop it and remove its rules (kube-proxy --cleanup) first.")
    }
  }
}

/// Hands the manifest folder's events to the reconciler.
private struct FollowSource: Service {
  let reconciler: Reconciler
  let configuration: AgentConfiguration

  func run() async throws {
    for await event in ManifestFolder(path: configuration.manifests).events().cancelOnGracefulShutdown() {
      await reconciler.handle(event)
    }
    // The stream ends by itself only when it could not begin.
    try await gracefulShutdown()
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
