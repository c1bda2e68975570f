import ArgumentParser
import Foundation
import KubernetesObjects
import LocalAPI
import Testing

@testable import ClusterSource
@testable import ProxyAgent

/// What stands in `deploy/`, against the agent that it deploys.
@Suite("What deploys the agent")
struct DeployTests {
  /// Tests/ProxyAgentTests/DeployTests.swift -> the package's folder.
  private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

  private static func text(_ name: String) throws -> [UInt8] {
    Array(try Data(contentsOf: root.appendingPathComponent("deploy/\(name)")))
  }

  private static func object(_ name: String) throws -> ManifestNode {
    try parseYAMLDocument(try text("kubernetes/\(name).yaml"))
  }

  @Test("the role lists and watches the kinds that the agent follows, creates Events, and nothing else")
  func role() throws {
    var granted: Set<String> = []
    for rule in try #require(Self.object("cluster-role")["rules"]?.list) {
      for group in try #require(rule["apiGroups"]?.texts) {
        for resource in try #require(rule["resources"]?.texts) {
          for verb in try #require(rule["verbs"]?.texts) { granted.insert("\(verb) \(group)/\(resource)") }
        }
      }
    }
    let wanted = ObjectKind.allCases.flatMap { kind in
      ["list", "watch"].map { "\($0) \(kind.apiGroup)/\(kind.plural)" }
    }
    #expect(granted == Set(wanted + ["create /events"]))
    let subject = try #require(Self.object("cluster-role-binding")["subjects"]?.list?.first)
    let account = try Self.object("service-account")["metadata"]
    #expect(subject["name"]?.textValue == account?["name"]?.textValue)
    #expect(subject["namespace"]?.textValue == account?["namespace"]?.textValue)
  }

  @Test("alerts and the dashboard are about metrics that agents tell")
  func metrics() throws {
    let told = try Self.names(in: Self.sources())
    for file in ["prometheus/rules.yaml", "prometheus/dashboard.json"] {
      let named = Self.names(in: String(decoding: try Self.text(file), as: UTF8.self))
      #expect(named.count > 8)
      #expect(named.subtracting(told) == [], "\(file)")
    }
  }

  private static func names(in text: String) -> Set<String> {
    var names: Set<String> = []
    for match in text.matches(of: /(sluice|kubeproxy)_[a-z_]+[a-z]/) {
      var name = String(match.output.0)
      for part in ["_bucket", "_sum", "_count"] where name.hasSuffix(part) { name.removeLast(part.count) }
      names.insert(name)
    }
    return names
  }

  /// Of the agent: each metric's name stands there once, as a whole.
  private static func sources() throws -> String {
    let folder = root.appendingPathComponent("Sources/ProxyAgent")
    return try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
      .filter { $0.pathExtension == "swift" }.map { try String(contentsOf: $0, encoding: .utf8) }.joined()
  }

  @Test("the agent takes the command lines and the config file; all objects are in the kustomization")
  func settings() throws {
    let spec = try #require(Self.object("daemon-set")["spec"]?["template"]?["spec"])
    let prepare = try #require(spec["initContainers"]?.list?.first?["command"]?.texts)
    let preparing = try SluiceAgent.parse(Array(prepare.dropFirst()))
    #expect(preparing.prepare && preparing.cniBinDir == "/host/cni-bin")

    let run = try #require(spec["containers"]?.list?.first?["command"]?.texts)
    let file = try #require(Self.object("config-map")["data"]?["agent.yaml"]?.textValue)
    let line = run.dropFirst().map { $0 == "$(NODE_NAME)" ? "node1" : $0 }
    let flags = try SluiceAgent.parse(line + ["--kubeconfig", "/etc/kubeconfig"]).options
    let configuration = try AgentConfiguration(flags) { flag, path in
      flag == "--config" && path == "/etc/sluice/agent.yaml" ? Array(file.utf8) : AgentSourceTests.kubeconfig
    }
    #expect(configuration.nodeName == "node1" && configuration.cgroup == "/host/cgroup")
    #expect(configuration.source.description == "https://api-server.invalid:6443")

    let unit = String(decoding: try Self.text("systemd/sluice-agent.service"), as: UTF8.self)
    let start = try #require(unit.split(separator: "\n").first { $0.hasPrefix("ExecStart=") })
    #expect(try SluiceAgent.parse(start.split(separator: " ").dropFirst().map(String.init)).options.config != nil)

    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent(
      "../../deploy/kubernetes")
    let files = try FileManager.default.contentsOfDirectory(atPath: folder.path).filter { $0 != "kustomization.yaml" }
    #expect(try Self.object("kustomization")["resources"]?.texts?.sorted() == files.sorted())
  }

  @Test("the chart takes every key of the config file that a DaemonSet does not set itself")
  func chart() throws {
    let schema = try JSONValue(parsing: Array(Self.text("helm/sluice/values.schema.json")))
    let keys = try #require(schema["properties"]?["agent"]?["properties"]?.objectValue).map(\.key)
    let itsOwn: Set = [
      "nodeName", "manifests", "kubeconfig", "context", "stateDir", "runDir", "socket", "healthzAddress",
    ]
    #expect(Set(keys) == ConfigFile.known.subtracting(itsOwn))
    func choices(_ key: String) -> [String]? {
      schema["properties"]?["agent"]?["properties"]?[key]?["enum"]?.arrayValue?.compactMap(\.stringValue)
    }
    #expect(choices("engine") == EngineName.allCases.map(\.rawValue))
    #expect(choices("socketLb") == SocketLB.allCases.map(\.rawValue))
    #expect(choices("liveFlows") == LiveFlows.allCases.map(\.rawValue))
    #expect(choices("logLevel") == LogLevel.allCases.map(\.rawValue))
    #expect(choices("logFormat") == LogFormat.allCases.map(\.rawValue))
    #expect(choices("migrateFrom") == OtherProxy.allCases.map(\.rawValue))
  }

  @Test("who runs for long is not privileged, may write where it has to, and never sees the runtime's plugins")
  func rights() throws {
    let spec = try #require(Self.object("daemon-set")["spec"]?["template"]?["spec"])
    let agent = try #require(spec["containers"]?.list?.first)
    #expect(try #require(spec["containers"]?.list).count == 1)
    let security = try #require(agent["securityContext"])
    #expect(security["privileged"] == nil && security["allowPrivilegeEscalation"]?.textValue == "false")
    #expect(security["readOnlyRootFilesystem"]?.textValue == "true")
    #expect(security["capabilities"]?["drop"]?.texts == ["ALL"])
    let added = try #require(security["capabilities"]?["add"]?.texts)
    let unit = String(decoding: try Self.text("systemd/sluice-agent.service"), as: UTF8.self)
    let bounds = try #require(unit.split(separator: "\n").first { $0.hasPrefix("CapabilityBoundingSet=") })
    #expect(Set(bounds.dropFirst(22).split(separator: " ").map { String($0.dropFirst(4)) }) == Set(added))
    var mounts: [String: String] = [:]
    for mount in try #require(agent["volumeMounts"]?.list) {
      mounts[try #require(mount["mountPath"]?.textValue)] = try #require(mount["name"]?.textValue)
    }
    for volume in try #require(spec["volumes"]?.list) {
      guard let path = volume["hostPath"]?["path"]?.textValue else { continue }
      #expect(!path.contains("cni/bin") || !mounts.values.contains(volume["name"]?.textValue ?? ""))
    }
    for path in ["/var/lib/sluice", "/run/sluice", "/etc/cni/net.d", "/sys/fs/bpf", "/run/netns", "/host/cgroup"] {
      #expect(mounts[path] != nil, "\(path)")
    }
  }
}

extension ManifestNode {
  fileprivate var list: [ManifestNode]? {
    if case .sequence(let items, _) = self { items } else { nil }
  }
  fileprivate var texts: [String]? { list?.compactMap(\.textValue) }
}
