import Dispatch
import Foundation
import LocalAPI
import Testing

@testable import APIServerDouble

/// What kubectl and its users rely on, where it is a question of values only. KubectlTests of the labs show the rest.
@Suite("The double of an API server") struct APIServerDoubleTests {
  private let store = ObjectStore()

  init() { store.addDefaultNamespace() }

  private func refusal(_ body: () throws -> Void) -> String? {
    do {
      try body()
      return nil
    } catch { return (error as? Refusal)?.message ?? "\(error)" }
  }

  private func service(_ name: String, _ spec: JSONValue) -> JSONValue {
    ["metadata": ["name": .string(name), "namespace": "default"], "spec": spec]
  }

  /// As a client creates it, and changes it afterwards.
  private func admitted(_ object: JSONValue, _ kind: ServedKind, replacing old: JSONValue? = nil) throws -> JSONValue {
    let place = "\(kind.root)/namespaces/default/\(kind.plural)"
    let name = object["metadata"]?["name"]?.stringValue ?? ""
    guard let old else {
      let asked = try APIRequest(method: "POST", path: place, query: "")
      return try store.put(try Admission(store: store).create(object, asked), kind)
    }
    let asked = try APIRequest(method: "PUT", path: "\(place)/\(name)", query: "")
    return try store.put(try Admission(store: store).replace(object, old, asked), kind)
  }

  // MARK: Services

  @Test("gives a Service addresses and node ports, and takes the ports back with the type")
  func types() throws {
    let spec: JSONValue = [
      "type": "NodePort", "ipFamilyPolicy": "PreferDualStack",
      "ports": [["name": "a", "port": 80], ["name": "b", "port": 81, "nodePort": 30_000]],
    ]
    let made = try admitted(service("web", spec), .service)
    let addresses = made["spec"]?["clusterIPs"]?.arrayValue?.compactMap(\.stringValue) ?? []
    #expect(addresses.count == 2 && addresses[0].hasPrefix("10.96.") && addresses[1].hasPrefix("fd00:10:96::"))
    // The one that was asked for by its number is not given to the first.
    let nodePorts = made["spec"]?["ports"]?.arrayValue?.compactMap { $0["nodePort"]?.intValue } ?? []
    #expect(nodePorts.count == 2 && nodePorts[0] != 30_000 && nodePorts[1] == 30_000)
    let changed = try admitted(made.with("spec", "type", value: "ClusterIP"), .service, replacing: made)
    #expect(changed["spec"]?["ports"]?.arrayValue?.allSatisfy { $0["nodePort"] == nil } == true)
    #expect(changed["spec"]?["clusterIPs"] == made["spec"]?["clusterIPs"])
    let name = changed.with("spec", "type", value: "ExternalName").with("spec", "externalName", value: "example.org")
    #expect(try admitted(name, .service, replacing: changed)["spec"]?["clusterIPs"] == nil)
  }

  @Test(
    "refuses Services by object and field",
    arguments: [
      (["ports": [["port": 0]]], "Service \"web\" is invalid: spec.ports[0].port: Invalid value: 0"),
      (["ports": [["port": 1], ["port": 2]]], "spec.ports[0].name: Required value"),
      (
        ["ports": [["name": "a", "port": 1], ["name": "a", "port": 2]]], "spec.ports[1].name: Duplicate value: \"a\""
      ),
      (["clusterIP": "bogus", "ports": [["port": 1]]], "spec.clusterIPs[0]: Invalid value: \"bogus\""),
      (["clusterIP": "10.96.0.7", "ports": [["port": 1]]], "provided IP is already allocated"),
      (["type": "NodePort", "ports": [["port": 1, "nodePort": 30_007]]], "provided port is already allocated"),
      (["type": "NodePort", "ports": [["port": 1, "nodePort": 80]]], "is not in the valid range"),
      (["ports": [["port": 1, "nodePort": 30_008]]], "spec.ports[0].nodePort: Forbidden"),
      (["type": "Else", "ports": [["port": 1]]], "spec.type: Unsupported value: \"Else\""),
    ] as [(JSONValue, String)])
  func refusedServices(_ spec: JSONValue, _ message: String) throws {
    _ = try admitted(
      service("other", ["type": "NodePort", "clusterIP": "10.96.0.7", "ports": [["port": 1, "nodePort": 30_007]]]),
      .service)
    let told = try #require(refusal { _ = try admitted(service("web", spec), .service) })
    #expect(told.contains(message), "\(told)")
  }

  // MARK: Others

  @Test("keeps a pod's status, and a Deployment's selector, from whoever replaces the object; counts generations")
  func kept() throws {
    let pod = try store.put(
      [
        "metadata": ["name": "web-1", "namespace": "default"],
        "spec": ["nodeName": "node1", "containers": [["name": "a", "image": "one"]]], "status": ["phase": "Running"],
      ], .pod)
    let other = pod.with("spec", "containers", value: [["name": "a", "image": "two"]])
    #expect(try admitted(other.with("status", value: nil), .pod, replacing: pod)["status"]?["phase"] == "Running")
    let moved = pod.with("spec", "nodeName", value: nil)
    #expect(
      refusal { _ = try admitted(moved, .pod, replacing: pod) }?.contains("Pod \"web-1\" is invalid: spec") == true)

    let deployment = try admitted(
      [
        "metadata": ["name": "web", "namespace": "default"],
        "spec": [
          "selector": ["matchLabels": ["app": "web"]], "template": ["metadata": ["labels": ["app": "web"]]],
        ],
      ], .deployment)
    #expect(deployment["metadata"]?["generation"] == 1 && deployment["spec"]?["replicas"] == 1)
    let more = try admitted(deployment.with("spec", "replicas", value: 3), .deployment, replacing: deployment)
    #expect(more["metadata"]?["generation"] == 2)
    let selector = more.with("spec", "selector", "matchLabels", value: ["app": "else"])
      .with("spec", "template", "metadata", "labels", value: ["app": "else"])
    #expect(
      refusal { _ = try admitted(selector, .deployment, replacing: more) }?.contains("field is immutable") == true)
    let stranger = more.with("metadata", "uid", value: "other").with("metadata", "resourceVersion", value: nil)
    #expect(
      refusal { _ = try admitted(stranger, .deployment, replacing: more) }?.contains("UID in precondition") == true)
  }

  @Test("an Event about a Node is in the namespace default, one about a Pod in the Pod's")
  func events() throws {
    func event(_ namespace: JSONValue?) -> JSONValue {
      let about: JSONValue = ["kind": "Node"]
      return [
        "metadata": ["name": "it", "namespace": "default"], "involvedObject": about.with("namespace", value: namespace),
      ]
    }
    _ = try admitted(event(nil), .event)
    #expect(
      refusal { _ = try admitted(event("shop").with("metadata", "name", value: "that"), .event) }?
        .contains("involvedObject.namespace") == true)
  }

  // MARK: Patches and queries

  @Test("merges lists by their keys, retains what is to be retained, refuses directives that it does not know")
  func patches() throws {
    let type = "application/strategic-merge-patch+json"
    let old: JSONValue = [
      "spec": [
        "ports": [["port": 80, "name": "a"], ["port": 81, "name": "b"]], "strategy": ["type": "x", "old": 1],
      ]
    ]
    let patch: JSONValue = [
      "spec": [
        "ports": [["port": 81, "$patch": "delete"], ["port": 82, "name": "c"]],
        "strategy": ["type": "y", "$retainKeys": ["type"]],
      ]
    ]
    let new = try Patch.apply(patch, type, to: old, .service)
    #expect(new["spec"]?["ports"] == [["port": 80, "name": "a"], ["port": 82, "name": "c"]])
    #expect(new["spec"]?["strategy"] == ["type": "y"])
    let merged = try Patch.apply(["spec": ["ports": [["port": 1]]]], "application/merge-patch+json", to: old, .service)
    #expect(merged["spec"]?["ports"] == [["port": 1]])
    let unknown: JSONValue = ["spec": ["$deleteFromPrimitiveList/finalizers": ["a"]]]
    #expect(
      refusal { _ = try Patch.apply(unknown, type, to: old, .service) }?.contains("$deleteFromPrimitiveList") == true)
    #expect(refusal { _ = try Patch.apply(patch, "application/json-patch+json", to: old, .service) } != nil)
  }

  @Test("reads a query as forms are written: a plus sign is a space")
  func query() throws {
    let asked = try APIRequest(method: "GET", path: "/api/v1/pods", query: "labelSelector=app+in+%28a%2Cb%29")
    let selector = try asked.selector
    #expect(selector.matches(["metadata": ["labels": ["app": "b"]]]))
    #expect(!selector.matches(["metadata": ["labels": ["app": "c"]]]))
  }

  @Test("goes on while those who listen are cut off in the middle of news")
  func cancelledListeners() {
    let store = ObjectStore()
    let ends = DispatchSemaphore(value: 0)
    Thread.detachNewThread {
      let object: JSONValue = ["metadata": ["name": "node1"]]
      for _ in 1...20_000 { _ = try? store.put(object, .node) }
      ends.signal()
    }
    Thread.detachNewThread {
      for _ in 1...5000 {
        let listener = Task { for await _ in store.news().stream {} }
        usleep(50)
        listener.cancel()
      }
      ends.signal()
    }
    let deadline = DispatchTime.now() + 60
    for _ in 1...2 { #expect(ends.wait(timeout: deadline) == .success, "writers and listeners wait for each other") }
  }
}
