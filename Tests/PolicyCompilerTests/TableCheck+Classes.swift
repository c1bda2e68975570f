import DataplaneModel
import KubernetesObjects
import NetworkTypes

@testable import PolicyCompiler

/// What classes, cells, profiles and sets of blocks know of each other: a slip there shows in no packet until much later.
extension ClassTable {
  func check(_ found: inout TableCheck.Findings) {
    checkCells(&found)
    checkGroups(&found)
    var weights: [BlockSetID: Int] = [:]
    var classWeights: [IdentityID: Int] = [:]
    var profileWeights: [ProfileID: Int] = [:]
    for (key, id) in cellIDs {
      weights[key.blocks, default: 0] += self[id].weight
      classWeights[self[id].identity, default: 0] += self[id].weight
      profileWeights[profile(of: key.owner), default: 0] += self[id].weight
    }
    for (identity, entry) in classes {
      found.expect(entry.weight == classWeights[identity], "class \(identity): weight \(entry.weight)")
      found.expect(identities[entry.place] == identity, "class \(identity) is not found where it is")
      for id in entry.cells {
        let key = self[id].key
        let place = Place(profile: profile(of: key.owner), blocks: key.blocks)
        found.expect(place == entry.place && self[id].identity == identity, "class \(identity) has a cell of another")
      }
    }
    found.expect(identities.count == classes.count, "\(identities.count) places of \(classes.count) classes")
    let places = classes.values.map(\.place)
    check("profile", profiles, Set(places.map(\.profile)).union([.node, .world, .unknown]), profileWeights, &found)
    check("set of blocks", blockSets, Set(places.map(\.blocks)), weights, &found)
  }

  private func check<Content: Facet>(
    _ what: String, _ table: FacetTable<Content>, _ used: Set<FacetID<Content>>, _ weights: [FacetID<Content>: Int],
    _ found: inout TableCheck.Findings
  ) {
    found.expect(Set(table.all) == used, "\(what): \(table.all.count) there, \(used.count) in use")
    for id in used {
      found.expect(table.id(of: table[id]) == id, "\(what) \(id) is not the one with its content")
      found.expect(table.weight(of: id) == weights[id] ?? 0, "\(what) \(id): weight \(table.weight(of: id))")
    }
    for peer in Set(used.flatMap { table[$0].peers }) {
      found.expect(table.having(peer) == used.filter { table[$0].peers.contains(peer) }, "\(what)s with peer \(peer)")
    }
  }

  private func checkCells(_ found: inout TableCheck.Findings) {
    var count = 0
    for (key, id) in cellIDs {
      let cell = self[id]
      found.expect(cell.key == key && cell.weight > 0, "cell \(key): not itself, or empty")
      found.expect(classes[cell.identity]?.cells.contains(id) == true, "cell \(key): not in its class")
      found.expect(cellsOfBlocks[key.blocks]?.contains(id) == true, "cell \(key): not found by its blocks")
      count += cell.addresses.count
      for address in cell.addresses {
        let space = spaces[Self.space(of: address.family)]
        found.expect(space.addresses[address] == id, "\(address): in two cells")
        found.expect(space.atoms.blocks(containing: address) == key.blocks, "\(address): in other blocks")
      }
    }
    found.expect(count == addressCount, "\(count) addresses in cells, \(addressCount) in all")
    let atoms = spaces.reduce(0) { $0 + $1.atoms.atoms.count }
    found.expect(cellIDs.values.reduce(0) { $0 + self[$1].atoms } == atoms, "other atoms in cells than there are")
    found.expect(cellsOfBlocks.values.reduce(0) { $0 + $1.count } == cellIDs.count, "cells that blocks still know of")
    found.expect(cells.count - freeCells.count == cellIDs.count, "cells that are neither used nor free")
  }

  private func checkGroups(_ found: inout TableCheck.Findings) {
    for (id, group) in groups {
      found.expect(groupsOfProfile[group.profile]?.contains(id) == true, "\(id): not in its profile")
      let cells = cellIDs.filter { $0.key.owner == .group(id) }.values
      found.expect(Set(cells) == Set(group.cells) && !cells.isEmpty, "\(id): has other cells, or none")
    }
    found.expect(
      groupsOfProfile.values.reduce(0) { $0 + $1.count } == groups.count, "groups that profiles still know of")
  }
}
