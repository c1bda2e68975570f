import KubernetesObjects
import NetworkTypes
import Testing

@Suite("Decoding what nobody would write") struct FuzzTests {
  /// SplitMix64: the same everywhere for one seed.
  private struct Random: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
      state &+= 0x9e37_79b9_7f4a_7c15
      var z = state
      z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
      z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
      return z ^ (z >> 31)
    }
  }

  private static let rich: [ManifestNode] = [
    Manifests.service.with([
      "metadata": ["labels": ["a": "b"], "creationTimestamp": "2026-01-31T12:00:00Z"],
      "spec": [
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": ["clientIP": ["timeoutSeconds": 5]], "loadBalancerSourceRanges": ["10.0.0.0/8"],
        "ports": [["name": "a", "port": 1, "nodePort": 2, "targetPort": "x"], ["name": "b", "port": 3]],
      ],
      "status": ["loadBalancer": ["ingress": [["ip": "1.2.3.4", "ipMode": "VIP"]]]],
    ]),
    Manifests.slice.with([
      "endpoints": [["addresses": ["10.0.0.1"], "conditions": ["ready": true], "hints": ["forZones": [["name": "z"]]]]]
    ]),
    Manifests.node.with([
      "spec": ["podCIDRs": ["10.0.0.0/24"]], "status": ["addresses": [["type": "InternalIP", "address": "1.2.3.4"]]],
    ]),
    Manifests.pod.with([
      "spec": ["containers": [["ports": [["containerPort": 1, "name": "a"]]]]], "status": ["podIP": "1.2.3.4"],
    ]),
    Manifests.namespace, Manifests.serviceCIDR,
    Manifests.policy.with([
      "spec": [
        "podSelector": ["matchExpressions": [["key": "a", "operator": "In", "values": ["b"]]]],
        "ingress": [
          [
            "from": [["ipBlock": ["cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]]]],
            "ports": [["port": 1, "endPort": 2]],
          ]
        ],
      ]
    ]),
    ["apiVersion": "v1", "kind": "List", "items": [Manifests.node, Manifests.service]],
  ]

  private static let scalars: [ManifestNode] = [
    nil, "", 0, -1, 65536, true, "None", "::", .plain("9223372036854775808"), .plain("-9223372036854775808"),
    .plain("1e999"), .plain("-"), .plain("+"), .plain("."), .plain("0x"), .plain("0x+1"), .plain("1_"), .plain("١"),
    .plain(".inf"), .plain("1e-1"), .plain("0"), .plain("9007199254740993.0"), "2026-13-31T12:00:00Z",
    "9999-12-31T23:59:60+23:59", "10.0.0.0/33", "/", "\u{0}", .plain("e5"), "\u{1F600}", [], [:], [nil], [[:]],
    .plain(String(repeating: "9", count: 4000)),
  ]

  private static func mutate(_ node: ManifestNode, _ random: inout Random) -> ManifestNode {
    if Int.random(in: 0..<12, using: &random) == 0 { return scalars.randomElement(using: &random) ?? nil }
    switch node {
    case .mapping(var entries, let line):
      guard let index = entries.indices.randomElement(using: &random) else { return node }
      switch Int.random(in: 0..<10, using: &random) {
      case 0: entries.remove(at: index)
      case 1: entries[index].key = ["name", "ports", "kind", "\u{0}", ""].randomElement(using: &random) ?? ""
      default: entries[index].value = mutate(entries[index].value, &random)
      }
      return .mapping(entries, line: line)
    case .sequence(var elements, let line):
      guard let index = elements.indices.randomElement(using: &random) else { return node }
      switch Int.random(in: 0..<10, using: &random) {
      case 0: elements.remove(at: index)
      case 1: elements.append(elements[index])
      default: elements[index] = mutate(elements[index], &random)
      }
      return .sequence(elements, line: line)
    case .scalar(let text, let isQuoted, let line):
      switch Int.random(in: 0..<4, using: &random) {
      case 0: return .scalar(text, isQuoted: !isQuoted, line: line)
      case 1: return .scalar(String(text.dropLast()), isQuoted: isQuoted, line: line)
      case 2: return .scalar(text + text, isQuoted: isQuoted, line: line)
      default: return scalars.randomElement(using: &random) ?? nil
      }
    case .null: return scalars.randomElement(using: &random) ?? nil
    }
  }

  @Test("any change of a manifest gives an object, a problem in one line, or an ignored kind; never a crash")
  func mutations() throws {
    let seed = UInt64.random(in: 0 ... .max)
    print("decoder fuzz seed: \(seed)")
    var random = Random(state: seed)
    let decoder = ObjectDecoder()
    var good = 0
    var bad = 0
    func check(_ result: DecodeResult) {
      switch result {
      case .object(_, let problems, _):
        good += 1
        for problem in problems { #expect(!problem.message.isEmpty && !problem.field.isEmpty, "seed \(seed)") }
      case .bad(let problem, _):
        bad += 1
        let text = problem.description
        #expect(!problem.message.isEmpty && !text.contains("\n") && text.utf8.count < 1000, "seed \(seed): \(text)")
      case .ignoredKind: break
      case .list(let results): results.forEach(check)
      }
    }
    for _ in 0..<20_000 {
      var node = Self.rich.randomElement(using: &random) ?? nil
      for _ in 0..<Int.random(in: 1...4, using: &random) { node = Self.mutate(node, &random) }
      check(decoder.decode(node, file: "f.yaml"))
    }
    // Both must be met often, or the mutations say nothing.
    #expect(good > 1000 && bad > 1000, "seed \(seed)")
  }
}
