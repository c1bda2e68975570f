import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@Suite("GC")
struct GarbageCollectionTests {
  private let node: Node
  private let pods: [Pod]

  init() throws {
    node = try Node()
    pods = try (0..<4).map { _ in try Pod() }
  }

  /// c0 to c2 in the network `pods`, and c3 in another one that has the same folders.
  private func attach() throws {
    for (number, pod) in pods.enumerated() {
      try node.add("c\(number)", pod, number == 3 ? other : node.config())
    }
  }

  private var other: JSONValue {
    node.config(["name": "others", "ipam": ["ranges": [[["subnet": "10.78.0.0/24"]]]]])
  }

  private func collect(_ changes: JSONObject) throws -> Outcome {
    try node.run("GC", "", node.config(changes), extra: ["CNI_IFNAME": ""])
  }

  /// Containers that have a device, those with a reservation, and those with a record.
  private func left() throws -> (devices: [String], owners: [String], records: [String]) {
    let links = try RouteSocket(in: node.network.namespace).links().map(\.name)
    let named = pods.indices.map { "c\($0)" }.filter { name in
      links.contains(AttachmentName(name, "eth0").hostInterface)
    }
    #expect(links.filter { $0.hasPrefix("slc") }.count == named.count)
    let stores = [node.store, AddressStore(stateDirectory: node.stateDirectory, network: "others")]
    let owners = try stores.flatMap { try $0.reservations() }.compactMap { $0.owner?.containerID }
    return (named, Set(owners).sorted(), try node.endpoints.list().records.map(\.containerID).sorted())
  }

  private func expectLeft(_ names: [String], sourceLocation: SourceLocation = #_sourceLocation) throws {
    let left = try left()
    #expect(left.devices == names, sourceLocation: sourceLocation)
    #expect(left.owners == names, sourceLocation: sourceLocation)
    #expect(left.records == names, sourceLocation: sourceLocation)
  }

  @Test(
    "removes what the runtime does not name, of this network only",
    arguments: ["cni.dev/valid-attachments", "cni.dev/attachments"])
  func stale(key: String) throws {
    try attach()
    let outcome = try collect([
      key: [["containerID": "c1", "ifname": "eth0"], ["containerID": "c2", "ifname": "net1"]]
    ])
    #expect(outcome.exitCode == 0 && outcome.output.isEmpty, "\(outcome)")
    try expectLeft(["c1", "c3"])
    #expect(try pods[0].links() == ["lo"])
    // And what it has freed can be had again.
    try node.add("c0", pods[0])
  }

  @Test("removes everything where there is no valid attachment", arguments: [nil, []] as [JSONValue])
  func everything(list: JSONValue) throws {
    try attach()
    // Not by `changes`, which take a null for a member to remove.
    guard case .object(var config) = node.config() else { return }
    config["cni.dev/valid-attachments"] = list
    let outcome = try node.run("GC", "", .object(config), extra: ["CNI_IFNAME": ""])
    #expect(outcome.exitCode == 0, "\(outcome)")
    try expectLeft(["c3"])
  }

  @Test("removes nothing where the runtime says nothing, or something that cannot be understood")
  func nothing() throws {
    try attach()
    #expect(try collect([:]).exitCode == 0)
    for list in [1, ["c1"], [["containerID": "c1"]], [["containerID": 1, "ifname": "eth0"]]] as [JSONValue] {
      let outcome = try collect(["cni.dev/valid-attachments": list])
      #expect(outcome.errorCode == 7 && outcome.message.contains("cni.dev/valid-attachments"), "\(outcome)")
    }
    #expect(try collect(["cniVersion": "1.0.0", "cni.dev/valid-attachments": []]).errorCode == 1)
    try expectLeft(["c0", "c1", "c2", "c3"])
  }

  @Test("removes what lost its reservation, its record, its device, or the sense of its reservation")
  func halves() throws {
    try attach()
    try node.store.release(containerID: "c0", interfaceName: "eth0")
    try node.endpoints.remove(network: "pods", containerID: "c1", interfaceName: "eth0")
    let owner = AttachmentName("c2", "eth0").hash
    let descriptor = open("\(node.store.directory)/owners/\(owner)", O_WRONLY | O_TRUNC)
    #expect(write(descriptor, "garbage", 7) == 7)
    close(descriptor)
    try node.endpoints.remove(network: "pods", containerID: "c2", interfaceName: "eth0")
    #expect(try collect(["cni.dev/valid-attachments": []]).exitCode == 0)
    try expectLeft(["c3"])
    #expect(try node.store.reservations().isEmpty)
  }

  @Test("keeps an attachment whose reservation cannot be read, where it is named")
  func unreadable() throws {
    try attach()
    let owner = AttachmentName("c2", "eth0").hash
    let descriptor = open("\(node.store.directory)/owners/\(owner)", O_WRONLY | O_TRUNC)
    #expect(write(descriptor, "garbage", 7) == 7)
    close(descriptor)
    let valid: JSONValue = [["containerID": "c2", "ifname": "eth0"]]
    #expect(try collect(["cni.dev/valid-attachments": valid]).exitCode == 0)
    #expect(try left().devices == ["c2", "c3"])
    #expect(try node.store.reservations().count == 2)
  }
}
