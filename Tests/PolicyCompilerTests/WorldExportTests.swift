import FoundationEssentials
import Glibc
import NetworkTypes
import Testing

@testable import PolicyWorlds

/// The worlds that scripts/policy-check compares with a program that is not ours. It names the folder; without one, a
/// handful goes to a temporary folder.
@Suite("Worlds for the independent check") struct WorldExportTests {
  private static let folder = getenv("SLUICE_EXPORT_WORLDS").map { String(cString: $0) }

  /// Half the worlds come from the fixed seed and half from the fresh one; a folder's name is `SEED-NUMBER`.
  @Test("are written, and what is written means what the oracle said", arguments: AgreementTests.seeds)
  func export(seed: UInt64) async throws {
    let temporary = try TemporaryFolder()
    let folder = Self.folder ?? temporary.path
    var random = WorldRandom(seed: seed)
    var verdicts: [Bool: Int] = [:]
    for number in 0..<(Self.folder == nil ? 5 : 200) {
      let size = number % 40 == 39 ? RandomWorld.Size.medium : .small
      let exported = ExportedWorld(using: &random, size: size, flows: 80)
      let path = "\(folder)/\(seed)-\(number)"
      try exported.write(to: path)
      for judgement in exported.judgements { verdicts[judgement.allowed, default: 0] += 1 }
      if number < 5 { try await check(path, isWrittenAs: exported) }
    }
    // Of a handful of fresh ones, all may be about open pods.
    if Self.folder != nil || seed == AgreementTests.seeds[0] {
      #expect(min(verdicts[true, default: 0], verdicts[false, default: 0]) > 20)
    }
    if Self.folder != nil { print("worlds for the independent check: seed \(seed), verdicts \(verdicts)") }
  }

  /// The world is read by the manifest reader, and each judgement is made again from the names and addresses in the file.
  private func check(_ path: String, isWrittenAs exported: ExportedWorld) async throws {
    var world = PolicyWorld(ownNode: exported.world.ownNode)
    let manifests = try String(contentsOfFile: "\(path)/world.yaml", encoding: .utf8)
    for object in try await objects(inManifests: manifests) { world.apply(.upsert(object)) }
    #expect(world == exported.world, "\(path)")
    let expected = try #require(FileManager.default.contents(atPath: "\(path)/expected.json"))
    let judgements = try JSONDecoder().decode([ExportedWorld.Judgement].self, from: expected)
    #expect(judgements == exported.judgements, "\(path)")
    for judgement in judgements {
      func address(_ end: String) throws -> IPAddress {
        let pod = world.pods.first { "\($0.key)" == end }
        let addresses = pod?.podIPs ?? [IPAddress(end)].compactMap { $0 }
        return try #require(addresses.first { "\($0.family)" == judgement.family }, "\(path): \(judgement)")
      }
      let proto = try #require(L4Protocol.allCases.first { $0.kubernetesName == judgement.proto })
      let allowed = world.allows(
        from: try address(judgement.from), to: try address(judgement.to), .transport(proto, judgement.port))
      #expect(allowed == judgement.allowed, "\(path): \(judgement)")
    }
  }
}
