import Foundation
import HTTPTypes
import Hummingbird
import KubernetesObjects
import LocalAPI
import Logging
import NIOCore
import ServiceCompiler
import Synchronization

/// Everything the agent serves: probes, metrics, and the local API on a unix socket.
enum HTTPServers {
  /// `/healthz`, `/livez` and `/readyz`, for kubelet and load balancers.
  static func health(_ reconciler: Reconciler, _ address: ListenAddress, _ logger: Logger) -> some ApplicationProtocol {
    let router = Router()
    router.get("healthz") { _, _ in answer(await reconciler.isHealthy) }
    router.get("livez") { _, _ in answer(await reconciler.isAlive) }
    router.get("readyz") { _, _ in answer(await reconciler.isReady) }
    return Application(
      router: router, configuration: .init(address: .hostname(address.host, port: address.port)), logger: logger)
  }

  static func metrics(_ reconciler: Reconciler, _ address: ListenAddress, _ logger: Logger) -> some ApplicationProtocol
  {
    let router = Router()
    let engine = reconciler.configuration.engine.rawValue
    router.get("metrics") { _, _ in text(await reconciler.metricsText(), type: "text/plain; version=0.0.4") }
    router.get("proxyMode") { _, _ in text(engine) }
    router.get("healthz") { _, _ in answer(await reconciler.isHealthy) }
    return Application(
      router: router, configuration: .init(address: .hostname(address.host, port: address.port)), logger: logger)
  }

  /// What the plugin and `dpctl` speak to.
  static func local(_ reconciler: Reconciler, socket: String, _ logger: Logger) -> some ApplicationProtocol {
    let router = Router(context: LocalContext.self)
    addPolicyRoutes(to: router, reconciler)
    router.get("v1/healthz") { _, _ in answer(await reconciler.isReady) }
    router.get("metrics") { _, _ in text(await reconciler.metricsText(), type: "text/plain; version=0.0.4") }
    router.get("v1/status") { _, _ in json(await reconciler.status()) }
    router.get("v1/services") { request, _ in
      let query = request.uri.queryParameters
      return json(
        await reconciler.services(
          namespace: query["namespace"].map(String.init), name: query["name"].map(String.init)))
    }
    router.get("v1/services/diff") { _, _ in
      await attempt { try await reconciler.serviceDiff() }
    }
    router.get("v1/log-level") { _, _ in json(["level": .string(AgentLog.level.rawValue)]) }
    router.put("v1/log-level") { request, _ in
      let body = try await request.body.collect(upTo: 1 << 10)
      return await attempt {
        let text = try JSONValue(parsing: Array(body.readableBytesView))["level"]?.stringValue ?? ""
        guard let level = LogLevel(rawValue: text) else {
          throw RequestProblem(
            "level", "'\(text)' is none of \(LogLevel.allCases.map(\.rawValue).joined(separator: ", "))")
        }
        AgentLog.level = level.level
        return ["level": .string(text)]
      }
    }
    router.get("v1/endpoints") { _, _ in json(await reconciler.endpointList()) }
    router.post("v1/endpoints") { request, _ in
      let body = try await request.body.collect(upTo: 1 << 16)
      return await attempt {
        let record = try EndpointRecord(json: JSONValue(parsing: Array(body.readableBytesView)))
        try await reconciler.publish(record)
        // An agent that knows nothing of host ports would not tell of them.
        return ["programmed": true, "hostPorts": .int(Int64(record.portMappings.count))]
      }
    }
    router.delete("v1/endpoints/:container/:interface") { _, context in
      let (container, interface) = (
        try context.parameters.require("container"), try context.parameters.require("interface")
      )
      return await attempt {
        try await reconciler.unpublish(
          containerID: container.removingPercentEncoding ?? container,
          interfaceName: interface.removingPercentEncoding ?? interface)
        return [:]
      }
    }
    return Application(
      router: router, configuration: .init(address: .unixDomainSocket(path: socket)),
      onServerRunning: { _ in _ = chmod(socket, 0o600) }, logger: logger)
  }

  private static func attempt(_ body: () async throws -> JSONValue) async -> Response {
    do {
      return json(try await body())
    } catch let problem as RequestProblem {
      return json(["error": .string("\(problem)")], status: problem.status)
    } catch {
      return json(["error": .string("\(error)")], status: .serviceUnavailable)
    }
  }

  private static func answer(_ isFine: Bool) -> Response {
    text(isFine ? "ok\n" : "not ok\n", status: isFine ? .ok : .serviceUnavailable)
  }

  static func json(_ value: JSONValue, status: HTTPResponse.Status = .ok) -> Response {
    text(value.serialized() + "\n", status: status, type: "application/json")
  }

  private static func text(
    _ text: String, status: HTTPResponse.Status = .ok, type: String = "text/plain; charset=utf-8"
  ) -> Response {
    Response(
      status: status, headers: [.contentType: type], body: .init(byteBuffer: ByteBuffer(string: text)))
  }
}

/// One listener per healthCheckNodePort: load balancers ask it whether this node has endpoints of the Service.
final class HealthCheckServers: Sendable {
  private struct Running {
    let task: Task<Void, Never>
    let localEndpoints: Counter
  }
  /// The number a running server answers with.
  final class Counter: Sendable {
    private let value: Atomic<Int>
    init(_ value: Int) { self.value = Atomic(value) }
    var number: Int {
      get { value.load(ordering: .relaxed) }
      set { value.store(newValue, ordering: .relaxed) }
    }
  }

  private let logger: Logger
  private let running = Mutex<[String: Running]>([:])

  init(logger: Logger) { self.logger = logger }

  /// Starts, stops and updates servers so that exactly `wanted` are answered for.
  func update(_ wanted: [ObjectKey: ServiceHealthCheck]) {
    running.withLock { running in
      var keep: Set<String> = []
      for (service, check) in wanted {
        let key = "\(service) \(check.port)"
        keep.insert(key)
        if let server = running[key] {
          server.localEndpoints.number = check.localEndpoints
        } else {
          let counter = Counter(check.localEndpoints)
          running[key] = Running(
            task: Self.serve(service, check.port.number, counter, logger), localEndpoints: counter)
        }
      }
      for (key, server) in running where !keep.contains(key) {
        server.task.cancel()
        running[key] = nil
      }
    }
  }

  private static func serve(_ service: ObjectKey, _ port: UInt16, _ counter: Counter, _ logger: Logger) -> Task<
    Void, Never
  > {
    let router = Router()
    router.get("**") { _, _ in response(service, counter.number) }
    router.get("/") { _, _ in response(service, counter.number) }
    // Being cancelled is how these servers end; Hummingbird reports it as an error. What fails is reported below.
    var silent = logger
    silent.logLevel = .critical
    return Task { [silent] in
      // A port that is still taken (its last owner may be closing it) is tried again.
      while !Task.isCancelled {
        do {
          try await Application(
            router: router, configuration: .init(address: .hostname("::", port: Int(port))), logger: silent
          ).run()
        } catch {
          if !Task.isCancelled {
            logger.error(
              "healthCheckNodePort cannot be served",
              metadata: ["service": "\(service)", "port": "\(port)", "error": "\(error)"])
          }
        }
        try? await Task.sleep(for: .seconds(1))
      }
    }
  }

  private static func response(_ service: ObjectKey, _ local: Int) -> Response {
    let body: JSONValue = [
      "service": ["namespace": .string(service.namespace), "name": .string(service.name)],
      "localEndpoints": .int(Int64(local)), "serviceProxyHealthy": true,
    ]
    var headers: HTTPFields = [.contentType: "application/json"]
    if let name = HTTPField.Name("X-Content-Type-Options") { headers[name] = "nosniff" }
    if let name = HTTPField.Name("X-Load-Balancing-Endpoint-Weight") { headers[name] = "\(local)" }
    return Response(
      status: local > 0 ? .ok : .serviceUnavailable, headers: headers,
      body: .init(byteBuffer: ByteBuffer(string: body.serialized())))
  }
}
